"""The engines users build: ``MLCEngine`` for threads, ``AsyncMLCEngine`` for event loops."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from windlass.engine.metrics import EngineMetrics
from windlass.serve.call import Call, Chunk_co, Response_co
from windlass.serve.chat import AsyncChat, Chat
from windlass.serve.completions import AsyncCompletions, Completions
from windlass.serve.embeddings import AsyncEmbeddings, Embeddings
from windlass.serve.engine_base import MLCEngineBase
from windlass.serve.mailbox import AsyncMailbox, SyncMailbox
from windlass.serve.preparer import run_in_thread

if TYPE_CHECKING:
    from typing_extensions import Self

Result = TypeVar("Result")


class MLCEngine(MLCEngineBase):
    """An LLM in this process, for synchronous code. Any number of threads may use one engine.

    with MLCEngine() as engine:
        answer = engine.chat.completions.create(messages=[{"role": "user", "content": "Hello!"}])
        print(answer.choices[0].message.content)
    """

    @property
    def chat(self) -> Chat:
        """Chat calls: ``engine.chat.completions.create(...)``."""
        return Chat(self)

    @property
    def completions(self) -> Completions:
        """Text calls: ``engine.completions.create(...)``."""
        return Completions(self)

    @property
    def embeddings(self) -> Embeddings:
        """Embeddings of texts: ``engine.embeddings.create(...)``."""
        return Embeddings(self)

    def abort(self, request_id: str) -> None:
        """End the call of that id with ``RequestAbortedError``; unknown and finished ids are ignored."""
        core = self._core
        if core is not None:
            core.abort_request(request_id)

    def unload(self) -> None:
        """Free the model but keep the engine; open requests end with ``RequestAbortedError``. Idempotent.

        Raises:
            EngineError: the engine is being terminated, or failed.
        """
        self._unload()

    def reload(self, model: str | None = None) -> None:
        """Load ``model``, by default the one loaded last, in place of what is loaded.

        Raises:
            LoadError: it cannot be loaded; the engine is unloaded then.
            EngineError: the engine is being terminated, or failed.
        """
        self._reload(model)

    def load_adapter(self, name: str, path: str | os.PathLike[str]) -> None:
        """Load a LoRA adapter beside the model; requests choose it with ``lora=name``. Open requests go on meanwhile.

        Args:
            name: letters, digits and ``. _ - / @ +``.
            path: directory of a PEFT adapter, or ``HF://org/name``.

        Raises:
            LoadError: it cannot be loaded, or is not for this model; nothing of it stays behind.
            ValueError: the name cannot be one, or another adapter has it.
            EngineError: the engine does not accept requests now.
        """
        self._load_adapter(name, path)

    def unload_adapter(self, name: str) -> None:
        """Refuse new requests with the adapter, wait until those that use it have ended, and free its memory.

        Raises:
            InvalidRequestError: there is no such adapter.
            EngineError: the engine does not accept requests now, or ended first.
        """
        self._unload_adapter(name)

    def metrics(self) -> EngineMetrics:
        """What the engine has done and is doing; works in every state but TERMINATED.

        Raises:
            EngineTerminatedError: the engine was terminated.
        """
        return self._metrics()

    def reset(self) -> None:
        """Abort every open request with ``RequestAbortedError``; the engine goes on serving."""
        self._parts()[0].reset()

    def _prepare(
        self, start: Callable[[], Call[SyncMailbox, Chunk_co, Response_co]]
    ) -> Call[SyncMailbox, Chunk_co, Response_co]:
        """Run ``start`` in the engine's own thread; when the caller is interrupted meanwhile, abort what it started."""
        return self._preparing().call(start, Call.abort)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit(kind)


class AsyncMLCEngine(MLCEngineBase):
    """An LLM in this process, for asyncio. Any number of event loops may use one engine, also at the same time.

    async with AsyncMLCEngine() as engine:
        stream = await engine.chat.completions.create(messages=[...], stream=True)
        async for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="")
    """

    @property
    def chat(self) -> AsyncChat:
        """Chat calls: ``await engine.chat.completions.create(...)``."""
        return AsyncChat(self)

    @property
    def completions(self) -> AsyncCompletions:
        """Text calls: ``await engine.completions.create(...)``."""
        return AsyncCompletions(self)

    @property
    def embeddings(self) -> AsyncEmbeddings:
        """Embeddings of texts: ``await engine.embeddings.create(...)``."""
        return AsyncEmbeddings(self)

    @classmethod
    async def load(cls, model: str | None = None, device: str = "auto", **arguments: Any) -> Self:
        """Construct an engine without blocking the event loop; the arguments are those of the constructor.

        Cancelling cuts the load short; nothing of it is left when the cancelled task goes on.

        Raises:
            LoadError: the model cannot be loaded; nothing of it stays behind.
            ValueError: an argument is out of range.
        """
        import asyncio  # its user has imported it long ago; an engine without event loops starts without it

        engine = cls.__new__(cls)
        try:
            await run_in_thread(lambda: MLCEngineBase.__init__(engine, model, device, **arguments))
        except asyncio.CancelledError:
            await run_in_thread(engine.terminate)
            raise
        return engine

    async def abort(self, request_id: str) -> None:
        """End the call of that id with ``RequestAbortedError``; unknown and finished ids are ignored."""
        core = self._core
        if core is not None:
            core.abort_request(request_id)

    async def unload(self) -> None:
        """As ``MLCEngine.unload``, without blocking the event loop."""
        await run_in_thread(self._unload)

    async def reload(self, model: str | None = None) -> None:
        """As ``MLCEngine.reload``, without blocking the event loop."""
        await run_in_thread(lambda: self._reload(model))

    async def load_adapter(self, name: str, path: str | os.PathLike[str]) -> None:
        """As ``MLCEngine.load_adapter``, without blocking the event loop. Cancelling cuts the load short."""
        given_up: list[bool] = []
        try:
            await run_in_thread(lambda: self._load_adapter(name, path, given_up))
        except BaseException:
            given_up.append(True)
            raise

    async def unload_adapter(self, name: str) -> None:
        """As ``MLCEngine.unload_adapter``, without blocking the event loop. Cancelling ends the wait only."""
        await run_in_thread(lambda: self._unload_adapter(name))

    async def metrics(self) -> EngineMetrics:
        """As ``MLCEngine.metrics``."""
        return self._metrics()

    async def reset(self) -> None:
        """As ``MLCEngine.reset``, without blocking the event loop."""
        await run_in_thread(self._parts()[0].reset)

    async def aterminate(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """As ``terminate``, without blocking the event loop."""
        await run_in_thread(lambda: self.terminate(drain=drain, timeout=timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await run_in_thread(lambda: self._exit(kind))

    async def _run_prepared(self, work: Callable[[], Result]) -> Result:
        """Run ``work``, such as tokenizing, in the engine's own thread, and return its result.

        Raises:
            EngineError: the engine does not accept requests now, or ended before ``work`` was done.
        """
        return await self._preparing().run(work, lambda _: None)

    async def _prepare(
        self, start: Callable[[], Call[AsyncMailbox, Chunk_co, Response_co]]
    ) -> Call[AsyncMailbox, Chunk_co, Response_co]:
        """Run ``start`` in the engine's own thread; when the task is cancelled meanwhile, abort what it started."""
        import asyncio  # its user has imported it long ago; an engine without event loops starts without it

        preparer = self._preparing()
        loop = asyncio.get_running_loop()

        def start_for_loop() -> Call[AsyncMailbox, Chunk_co, Response_co]:
            call = start()
            call.mailbox.attach(loop)
            return call

        return await preparer.run(start_for_loop, Call.abort)
