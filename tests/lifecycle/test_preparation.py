"""L4, L5, L9, L10, L14 to L16: what happens to calls while a thread of the engine makes token ids of their text."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from support.lifecycle import (
    ANSWER,
    ENDLESS,
    FACES,
    LIMIT,
    LONG,
    PROMPT,
    AsyncFace,
    Face,
    Started,
    ask,
    core_of,
    idle_and_whole,
    num_threads,
    read,
    wait_for,
)
from windlass import AsyncMLCEngine, EngineTerminatedError, InvalidRequestError, MLCEngine
from windlass.engine.accounts import Accounts
from windlass.engine.loop import EngineCore
from windlass.engine.state import EngineState
from windlass.serve.engine_base import MLCEngineBase
from windlass.text.text_model import TextModel
from windlass.text.tokenizer import Tokenizer


class Hold:
    """Shut, it holds the engine's thread in the middle of preparing a call."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.held = threading.Event()
        self.passed: list[str] = []

    def __call__(self) -> None:
        self.passed.append(threading.current_thread().name)
        self.held.set()
        assert self.open.wait(LIMIT)


@pytest.fixture
def hold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    """A shut hold, before the text is encoded, or (by parameter) when the engine has just accepted the call."""
    one = Hold()
    encode, accept = TextModel.encode_chat, EngineCore.add_request

    def held_encode(*arguments: Any, **named: Any) -> list[int]:
        one()
        return encode(*arguments, **named)

    def accept_and_hold(*arguments: Any) -> None:
        accept(*arguments)
        one()

    if getattr(request, "param", "encoding") == "encoding":
        monkeypatch.setattr(TextModel, "encode_chat", held_encode)
    else:
        monkeypatch.setattr(EngineCore, "add_request", accept_and_hold)
    yield one
    one.open.set()


BOTH = pytest.mark.parametrize("hold", ["encoding", "accepted"], indirect=True)


def waiting_jobs(engine: MLCEngineBase) -> int:
    """Calls that are being prepared or wait for it."""
    assert engine._preparer is not None
    return len(engine._preparer._jobs)


@contextmanager
def on_signal(handler: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Have ``handler`` run once by a signal in the main thread; yields what sends it."""
    ran = threading.Event()

    def handle(*_: object) -> None:
        if not ran.is_set():
            ran.set()
            handler()

    def send() -> None:
        # Python does not notice a signal that comes just before the system call in which it waits.
        while not ran.is_set():
            signal.pthread_kill(main, signal.SIGUSR1)
            ran.wait(0.05)

    before = signal.signal(signal.SIGUSR1, handle)
    main = threading.main_thread().ident
    assert main is not None
    try:
        yield send
    finally:
        ran.set()
        signal.signal(signal.SIGUSR1, before)


def test_L14_text_becomes_token_ids_in_the_engine_s_own_thread(
    face: Face, engine: MLCEngineBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``tokenizers`` keeps for a thread that asked it ends with the engine then."""
    names: list[str] = []
    encode = Tokenizer._encode

    def noting(*arguments: Any) -> list[int]:
        names.append(threading.current_thread().name)
        return encode(*arguments)

    monkeypatch.setattr(Tokenizer, "_encode", noting)
    assert face.answer(engine, stop=["zzz"]) == ANSWER
    face.complete(engine, "The capital", max_tokens=3, echo=True)
    assert read(face.stream(engine)) == ANSWER
    assert len(names) >= 3
    assert set(names) == {"windlass-prepare"}


@BOTH
@pytest.mark.parametrize("plain", [True, False])
def test_L10_who_waits_for_preparation_is_told_at_once(face: Face, hold: Hold, plain: bool) -> None:
    """Also when the thread that prepares is in the middle of a very long text."""
    engine = face.build()
    calls = [Started(face.create if i % 2 else face.stream, engine, LONG, **ENDLESS) for i in range(4)]
    assert hold.held.wait(LIMIT)
    assert wait_for(lambda: waiting_jobs(engine) == 4)
    started = time.monotonic()
    ending = Started(engine.terminate) if plain else Started(face.terminate, engine)
    for call in calls:
        assert call.ended()
        assert isinstance(call.error, EngineTerminatedError)
    told = max(call.ended_at for call in calls) - started
    print(f"the last caller knew after {1000 * told:.1f} ms")
    assert told < PROMPT
    assert len({id(call.error) for call in calls}) == 4, "an error belongs to one caller"
    hold.open.set()
    assert ending.ended()
    assert engine.state is EngineState.TERMINATED
    assert not any(thread.is_alive() for thread in engine._own_threads())


@BOTH
def test_L05_an_interrupted_wait_for_preparation_is_undone(sync_face: Face, hold: Hold) -> None:
    engine = sync_face.build(slow=True)
    for stream in (False, True):

        def stop() -> None:
            raise KeyboardInterrupt

        hold.open.clear()
        hold.held.clear()
        with on_signal(stop) as send:
            sending = Started(lambda send=send: hold.held.wait(LIMIT) and send())
            with pytest.raises(KeyboardInterrupt):
                ask(engine, LONG, stream=stream, **ENDLESS)
        assert sending.ended()
        hold.open.set()
        assert wait_for(lambda: waiting_jobs(engine) == 0)
        assert idle_and_whole(engine, PROMPT)
    assert sync_face.answer(engine) == ANSWER


def test_L05_a_call_that_was_given_up_is_not_prepared(face: Face, hold: Hold) -> None:
    engine = face.build()
    first = Started(face.answer, engine)
    assert hold.held.wait(LIMIT)
    if isinstance(face, AsyncFace):

        async def give_up() -> None:
            task = asyncio.ensure_future(ask(engine, LONG))
            while waiting_jobs(engine) < 2:
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

        face.run(give_up())
    else:

        def stop() -> None:
            raise KeyboardInterrupt

        with on_signal(stop) as send:
            sending = Started(lambda: wait_for(lambda: waiting_jobs(engine) == 2) and send())
            with pytest.raises(KeyboardInterrupt):
                ask(engine, LONG)
        assert sending.ended()
    hold.open.set()
    assert first.result() == ANSWER
    assert wait_for(lambda: waiting_jobs(engine) == 0)
    assert len(hold.passed) == 1
    assert face.answer(engine) == ANSWER


@BOTH
def test_L09_a_signal_handler_terminates_while_its_thread_waits_for_preparation(sync_face: Face, hold: Hold) -> None:
    engine = sync_face.build()
    with on_signal(engine.terminate) as send:

        def use() -> None:
            assert hold.held.wait(LIMIT)
            send()
            assert wait_for(lambda: engine.state is EngineState.TERMINATING)
            hold.open.set()

        using = Started(use)
        with pytest.raises(EngineTerminatedError):
            ask(engine, LONG, **ENDLESS)
    using.result()
    assert engine.state is EngineState.TERMINATED


@BOTH
def test_L09_a_signal_handler_calls_while_its_thread_waits_for_preparation(sync_face: Face, hold: Hold) -> None:
    engine = sync_face.build()
    answers: list[str] = []

    def call() -> None:
        hold.open.set()
        answers.append(sync_face.answer(engine))

    with on_signal(call) as send:
        using = Started(lambda: hold.held.wait(LIMIT) and send())
        answers.append(sync_face.answer(engine))
    assert using.ended()
    assert answers == [ANSWER, ANSWER]


class Caller:
    """Calls in its finalizer. In a cycle, so that only the garbage collector runs it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.cycle = self

    def __del__(self) -> None:
        self.call()


@pytest.mark.parametrize("where", ["encoding", "admission"])
def test_L09_a_finalizer_calls_in_the_thread_that_prepares(
    sync_face: Face, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    engine = sync_face.build()
    owner: Any = TextModel if where == "encoding" else Accounts
    name = {"encoding": "encode_chat", "admission": "_refuse_overload"}[where]
    original = getattr(owner, name)
    answers: list[str] = []

    def collect(*arguments: Any, **named: Any) -> Any:
        outcome = original(*arguments, **named)
        if not answers:
            answers.append("being made")
            Caller(lambda: answers.append(sync_face.answer(engine)))
            gc.collect()
        return outcome

    monkeypatch.setattr(owner, name, collect)
    asked = Started(sync_face.answer, engine)
    assert asked.result() == ANSWER
    assert answers[1:] == [ANSWER]


@pytest.mark.parametrize("place", ["engine", "stream-back"])
def test_L09_a_finalizer_opens_a_stream_in_a_thread_of_the_engine(sync_face: Face, place: str) -> None:
    engine = sync_face.build()
    core = core_of(engine)
    readers: list[Any] = []
    opened = threading.Event()

    class Opening:
        def __iter__(self) -> Any:
            self.open()
            return iter([(None, None, None, None)])

        def open(self) -> None:
            Caller(lambda: readers.append(sync_face.stream(engine)))
            gc.collect()
            opened.set()

    if place == "engine":
        core._inbox.put(Opening().open)
    else:
        core._stream_back.publish(Opening())  # type: ignore[arg-type]
    assert opened.wait(LIMIT)
    assert read(readers[0]) == ANSWER


def test_L04_an_error_of_preparation_is_the_caller_s_own(sync_face: Face) -> None:
    """With a traceback that shows both threads, and in no reference cycle."""
    engine = sync_face.build()
    errors: list[InvalidRequestError] = []

    def refused() -> None:
        try:
            ask(engine, temperature=-5.0)
        except InvalidRequestError as error:
            errors.append(error)

    for call in [Started(refused) for _ in range(4)]:
        call.result()
    assert len({id(error) for error in errors}) == 4
    names = [frame.name for frame in traceback.extract_tb(errors[0].__traceback__)]
    assert names.index("create") < names.index("start_chat") < names.index("check_arguments")
    gc.collect()
    gc.disable()
    try:
        jobs = [one for one in gc.get_objects() if type(one).__name__ == "_ThreadJob"]
        assert len(jobs) <= 4
        references = [weakref.ref(job) for job in jobs]
        del jobs
        errors.clear()
        assert [reference() for reference in references] == [None] * len(references)
    finally:
        gc.enable()


def test_L04_whatever_the_work_raises_reaches_the_caller(face: Face, engine: MLCEngineBase) -> None:
    class Strange(list[Any]):
        def __iter__(self) -> Any:
            raise SystemExit(7)

    strange: Any = Strange([{"role": "user", "content": "x"}])
    if isinstance(face, AsyncFace):

        async def use() -> None:
            assert isinstance(engine, AsyncMLCEngine)
            # Caught here: a task that ends with it would end its event loop.
            with pytest.raises(SystemExit, match="7"):
                await engine.chat.completions.create(messages=strange)

        face.run(use())
    else:
        assert isinstance(engine, MLCEngine)
        called = Started(engine.chat.completions.create, messages=strange)
        assert called.ended()
        assert isinstance(called.error, SystemExit)
    assert face.answer(engine) == ANSWER


def test_L15_an_engine_that_is_dropped_while_it_prepares_ends(sync_face: Face, hold: Hold) -> None:
    """The thread that prepares holds the last reference then."""
    threads = num_threads()
    engines = [sync_face.build(tracked=False)]

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.warns(ResourceWarning):
        with on_signal(stop) as send:
            sending = Started(lambda: hold.held.wait(LIMIT) and send())
            with suppress(KeyboardInterrupt):
                ask(engines.pop(), LONG, **ENDLESS)
        assert sending.ended()
        hold.open.set()
        assert wait_for(lambda: num_threads() <= threads)


EXIT = """
import atexit, sys
def late():
    try:
        once()
    except EngineTerminatedError:
        print("refused")
atexit.register(late)
import asyncio
from windlass import AsyncMLCEngine, EngineConfig, EngineTerminatedError, MLCEngine
face = sys.argv[1]
engine = {"sync": MLCEngine, "async": AsyncMLCEngine}[face](engine_config=EngineConfig(verbose=False))
def once():
    created = engine.chat.completions.create(messages=[{"role": "user", "content": "x"}], max_tokens=1)
    if face == "async":
        async def use():
            return await created
        return asyncio.run(use())
    return created
once()
"""


@pytest.mark.parametrize("name", FACES)
def test_L16_a_call_after_the_exit_hook_is_refused(name: str) -> None:
    result = subprocess.run([sys.executable, "-c", EXIT, name], capture_output=True, text=True, timeout=LIMIT)
    assert (result.stdout, result.stderr, result.returncode) == ("refused\n", "", 0)
