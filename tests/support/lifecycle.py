"""Waiting with a limit, looking at the process, and the two faces of the engine behind one set of blocking calls."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from windlass import AsyncMLCEngine, EngineConfig, MLCEngine
from windlass.demo import model_directory
from windlass.engine.loop import EngineCore
from windlass.engine.state import EngineState
from windlass.program.executor import Batch
from windlass.serve.engine_base import MLCEngineBase

LIMIT = 20.0
"""Seconds after which a wait counts as a hang."""

PROMPT = 1.0
"""Seconds that a machine under load is given for what the contract wants within 100 or 250 ms."""

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
LONG = "Tell me a story about a fox."

ENDLESS: dict[str, Any] = {"max_tokens": 900, "debug_config": {"ignore_eos": True}}
"""Arguments of a call that goes on for seconds on a slowed engine unless it is ended."""


DRAFT_MODEL: dict[str, Any] = {"speculative_mode": "small_draft", "additional_models": [str(model_directory())]}
"""Settings of an engine with two models: the demo model drafts for itself."""


def wait_for(condition: Callable[[], bool], limit: float = LIMIT) -> bool:
    """Return whether ``condition`` became true within ``limit`` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def num_threads() -> int:
    """Threads of this process that the operating system knows, Python's and all others."""
    return len(list(Path("/proc/self/task").iterdir()))


def num_descriptors() -> int:
    """Open file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def num_mappings() -> int:
    """Ranges of memory that are mapped into this process."""
    return len(Path("/proc/self/maps").read_text().splitlines())


def child_processes() -> set[str]:
    """Process ids of the children of this process."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mapped_files() -> set[str]:
    """The files that are mapped into this process, compiled modules and libraries left out."""
    fields = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    return {field[5] for field in fields if len(field) == 6 and field[5].startswith("/") and ".so" not in field[5]}


def ask(engine: MLCEngineBase, text: str = QUESTION, **arguments: Any) -> Any:
    """Put one question, greedily; returns what ``create`` does."""
    arguments = {"temperature": 0.0, "max_tokens": 60, **arguments}
    return engine.chat.completions.create(messages=[{"role": "user", "content": text}], **arguments)  # type: ignore[attr-defined]


def core_of(engine: MLCEngineBase) -> EngineCore:
    """The core of a living engine."""
    assert engine._core is not None
    return engine._core


def num_pages(engine: MLCEngineBase) -> int:
    """All pages of a living engine."""
    total = engine.engine_config.max_total_sequence_length
    assert total is not None
    return total // engine.engine_config.kv_cache_page_size


def idle_and_whole(engine: MLCEngineBase, limit: float = LIMIT) -> bool:
    """Return whether within ``limit`` seconds no call was open and every page was available."""
    core, pages = core_of(engine), num_pages(engine)
    return core.wait_until_idle(limit) and wait_for(lambda: core.num_free_pages() == pages, limit)


def replace_run(engine: MLCEngineBase, run: Callable[[Callable[[Batch], Any], Batch], Any]) -> None:
    """Have the engine's steps done by ``run``, which is given the real function and the batch."""
    runtime = core_of(engine)._runtime
    assert runtime is not None
    executor = runtime.executor
    # Weak, so that the engine stays free of reference cycles.
    original, reference = type(executor).run, weakref.ref(executor)

    def replaced(batch: Batch) -> Any:
        return run(lambda one: original(reference(), one), batch)  # type: ignore[arg-type]

    executor.run = replaced  # type: ignore[method-assign]


def slow_down(engine: MLCEngineBase, seconds: float = 0.004) -> None:
    """Make every step take ``seconds`` longer: the demo model writes 900 tokens in a fifth of a second."""

    def run(original: Callable[[Batch], Any], batch: Batch) -> Any:
        time.sleep(seconds)
        return original(batch)

    replace_run(engine, run)


class Gate:
    """Holds an engine in the middle of every step while it is shut; it begins open."""

    def __init__(self, engine: MLCEngineBase) -> None:
        self.open = threading.Event()
        self.open.set()
        self.held = threading.Event()
        gate_open, held = self.open, self.held

        def run(original: Callable[[Batch], Any], batch: Batch) -> Any:
            if not gate_open.is_set():
                held.set()
                assert gate_open.wait(LIMIT)
                held.clear()
            return original(batch)

        replace_run(engine, run)

    def shut(self) -> None:
        """Hold the engine from its next step on."""
        self.open.clear()


def write_shape(path: Path, **sizes: int) -> str:
    """Write the config.json of a Llama of some shape, for ``load_format="dummy"``; return the directory."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **sizes,
    }
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


MIDDLE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 16000,
}
"""About 120 MB in bfloat16; a prompt of thousands of tokens takes it seconds."""

LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
"""The 1.2B shape of Llama 3.2."""


class Reader(Protocol):
    """A stream of either face, read by blocking calls."""

    def next(self) -> str | None:
        """Wait for the next chunk and return its text; None at the end."""
        ...

    def close(self) -> None:
        """Close the stream."""
        ...


def read(reader: Reader) -> str:
    """Read a stream to its end and return all of its text."""
    return "".join(iter(reader.next, None))


class SyncReader:
    """A ``Stream``."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def next(self) -> str | None:
        chunk = next(self.stream, None)
        return None if chunk is None else chunk.choices[0].delta.content or ""

    def close(self) -> None:
        self.stream.close()


class AsyncReader:
    """An ``AsyncStream``, read on the event loop of its face."""

    def __init__(self, stream: Any, face: AsyncFace) -> None:
        self.stream = stream
        self._face = face

    def next(self) -> str | None:
        async def step() -> Any:
            return await anext(self.stream, None)

        chunk = self._face.run(step())
        return None if chunk is None else chunk.choices[0].delta.content or ""

    def close(self) -> None:
        self._face.run(self.stream.aclose())


class Face:
    """What a test does with an engine, the same for both faces. Every call blocks, and may come from any thread."""

    name: str
    kind: type[MLCEngineBase]

    def __init__(self) -> None:
        self.engines: list[MLCEngineBase] = []

    def build(
        self, *, slow: bool = False, tracked: bool = True, num_threads: int = 2, **settings: Any
    ) -> MLCEngineBase:
        """Build an engine, of the demo model unless ``settings`` say otherwise.

        A tracked one is checked and terminated by ``finish``; a slow one takes 4 ms longer for each step, and gives
        one token a step.
        """
        if slow:
            settings.setdefault("speculative_mode", "disable")
        engine = self.kind(engine_config=EngineConfig(num_threads=num_threads, verbose=False, **settings))
        if slow:
            slow_down(engine)
        if tracked:
            self.engines.append(engine)
        return engine

    def create(self, engine: MLCEngineBase, text: str = QUESTION, **arguments: Any) -> Any:
        """Wait for a whole answer."""
        raise NotImplementedError

    def stream(self, engine: MLCEngineBase, text: str = QUESTION, **arguments: Any) -> Reader:
        """Open a stream."""
        raise NotImplementedError

    def complete(self, engine: MLCEngineBase, prompt: list[int] | str, **arguments: Any) -> Any:
        """Wait for a whole text completion."""
        raise NotImplementedError

    def call(self, engine: MLCEngineBase, name: str, *arguments: Any) -> None:
        """Call ``abort``, ``reset``, ``unload`` or ``reload``."""
        raise NotImplementedError

    def terminate(self, engine: MLCEngineBase, **arguments: Any) -> None:
        """Terminate in the way of the face: ``terminate`` or ``aterminate``."""
        raise NotImplementedError

    def block(self, engine: MLCEngineBase) -> AbstractContextManager[None]:
        """``with engine`` or ``async with engine``."""
        raise NotImplementedError

    def answer(self, engine: MLCEngineBase, text: str = QUESTION, **arguments: Any) -> str:
        """Wait for a whole answer and return its text."""
        content = self.create(engine, text, **arguments).choices[0].message.content
        assert isinstance(content, str)
        return content

    def finish(self) -> None:
        """Check the page accounts of every engine that still serves, and terminate all engines."""
        serving = [engine for engine in self.engines if engine.state is EngineState.READY]
        whole = [idle_and_whole(engine) for engine in serving]
        for engine in self.engines:
            engine.terminate()
        assert all(whole), "a call is open, or pages are held, that nobody reads"


class SyncFace(Face):
    """``MLCEngine``."""

    name = "sync"
    kind = MLCEngine

    def create(self, engine: MLCEngineBase, text: str = QUESTION, **arguments: Any) -> Any:
        return ask(engine, text, **arguments)

    def stream(self, engine: MLCEngineBase, text: str = QUESTION, **arguments: Any) -> Reader:
        return SyncReader(ask(engine, text, stream=True, **arguments))

    def complete(self, engine: MLCEngineBase, prompt: list[int] | str, **arguments: Any) -> Any:
        assert isinstance(engine, MLCEngine)
        return engine.completions.create(prompt=prompt, **{"temperature": 0.0, **arguments})

    def call(self, engine: MLCEngineBase, name: str, *arguments: Any) -> None:
        getattr(engine, name)(*arguments)

    def terminate(self, engine: MLCEngineBase, **arguments: Any) -> None:
        engine.terminate(**arguments)

    @contextmanager
    def block(self, engine: MLCEngineBase) -> Iterator[None]:
        assert isinstance(engine, MLCEngine)
        with engine:
            yield


class AsyncFace(Face):
    """``AsyncMLCEngine`` on an event loop in a thread of its own, which ``finish`` ends."""

    name = "async"
    kind = AsyncMLCEngine

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-event-loop")
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(3 * LIMIT)

    def create(self, engine: MLCEngineBase, text: str = QUESTION, **arguments: Any) -> Any:
        return self.run(ask(engine, text, **arguments))

    def stream(self, engine: MLCEngineBase, text: str = QUESTION, **arguments: Any) -> Reader:
        return AsyncReader(self.run(ask(engine, text, stream=True, **arguments)), self)

    def complete(self, engine: MLCEngineBase, prompt: list[int] | str, **arguments: Any) -> Any:
        assert isinstance(engine, AsyncMLCEngine)
        return self.run(engine.completions.create(prompt=prompt, **{"temperature": 0.0, **arguments}))

    def call(self, engine: MLCEngineBase, name: str, *arguments: Any) -> None:
        self.run(getattr(engine, name)(*arguments))

    def terminate(self, engine: MLCEngineBase, **arguments: Any) -> None:
        assert isinstance(engine, AsyncMLCEngine)
        self.run(engine.aterminate(**arguments))

    @contextmanager
    def block(self, engine: MLCEngineBase) -> Iterator[None]:
        assert isinstance(engine, AsyncMLCEngine)
        self.run(engine.__aenter__())
        try:
            yield
        except BaseException as error:
            self.run(engine.__aexit__(type(error), error, error.__traceback__))
            raise
        self.run(engine.__aexit__(None, None, None))

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(LIMIT)
            self.loop.close()


FACES: dict[str, type[Face]] = {"sync": SyncFace, "async": AsyncFace}


class Started:
    """A function running in a thread of its own; ``result`` waits for what it returned or raised, and when."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        self._outcome: Any = None
        self.error: BaseException | None = None
        self.ended_at = 0.0

        def run() -> None:
            try:
                self._outcome = function(*arguments, **named)
            except BaseException as error:
                self.error = error
            self.ended_at = time.monotonic()

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def ended(self, limit: float = LIMIT) -> bool:
        """Wait until the function has ended; return whether it has."""
        self.thread.join(limit)
        return not self.thread.is_alive()

    def result(self, limit: float = LIMIT) -> Any:
        """Return what the function returned, or raise what it raised."""
        assert self.ended(limit), "it hangs"
        if self.error is not None:
            raise self.error
        return self._outcome


async def contents(stream: AsyncIterator[Any]) -> str:
    """Read an async stream to its end and return all of its text."""
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
