"""L3 to L18 in any order: random histories of one engine, against a model of what every call may end with."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.lifecycle import (
    ANSWER,
    DRAFT_MODEL,
    ENDLESS,
    FACES,
    LIMIT,
    LONG,
    Face,
    Reader,
    Started,
    SyncReader,
    ask,
    core_of,
    idle_and_whole,
    num_threads,
    read,
    wait_for,
)
from windlass import EngineForkedError, EngineTerminatedError, EngineUnloadedError, RequestAbortedError
from windlass.engine.state import EngineState
from windlass.serve.engine_base import MLCEngineBase


class History(RuleBasedStateMachine):
    """``readers`` are the open streams, with the error that each must end with, or None for its whole answer."""

    face: Face
    engine: MLCEngineBase

    def __init__(self) -> None:
        super().__init__()
        self.threads = num_threads()
        self.readers: list[tuple[str, Reader, type[Exception] | None]] = []
        self.number = 0
        self.drains: list[Started] = []

    @initialize(
        face=strategies.sampled_from([*FACES]),
        sequences=strategies.sampled_from([1, 3]),
        drafts=strategies.sampled_from([0, 1, 5]),
        settings=strategies.sampled_from([{}, DRAFT_MODEL]),
    )
    def build(self, face: str, sequences: int, drafts: int, settings: dict[str, Any]) -> None:
        self.face = FACES[face]()
        self.engine = self.face.build(max_num_sequence=sequences, spec_draft_length=drafts, **settings)

    @rule()
    @precondition(lambda self: self.number > 1)
    def fork(self) -> None:
        """L18: the child is refused and lets go of everything; the parent goes on as if nothing had been."""
        state, threads = self.engine.state, num_threads()
        exit_code, said = in_a_child(self.be_the_child)
        assert exit_code == 0, said
        assert num_threads() <= threads
        if not self.drains:
            assert self.engine.state is state

    def be_the_child(self) -> None:
        for name in ("unload", "reload", "reset"):
            with pytest.raises(EngineForkedError):
                finished(getattr(self.engine, name)())
        with pytest.raises(EngineForkedError):
            finished(ask(self.engine))
        finished(self.engine.abort("r1"))  # type: ignore[attr-defined]
        for _, reader, _ in self.readers:
            # What had come may still be read.
            with suppress(EngineForkedError):
                while finished(anext_of(reader)) is not None:
                    pass
        self.engine.terminate(drain=True)
        self.engine.terminate()
        self.readers.clear()
        self.face.engines.clear()
        del self.engine
        gc.collect()

    @rule()
    @precondition(lambda self: self.number > 3)
    def drain_beside_it(self) -> None:
        """What is accepted ends well, unless the history cuts it; nothing new is accepted from here on."""
        self.drains.append(Started(self.face.terminate, self.engine, drain=True, timeout=LIMIT))
        assert wait_for(lambda: self.engine.state not in (EngineState.READY, EngineState.UNLOADED))

    def cut(self, error: type[Exception]) -> None:
        """Every open stream that has not finished ends with ``error``."""
        self.readers = [(name, reader, expected or error) for name, reader, expected in self.readers]

    @property
    def serving(self) -> bool:
        return self.engine.state is EngineState.READY

    @rule(count=strategies.integers(1, 3))
    def submit(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            name = f"r{self.number}"
            try:
                reader = self.face.stream(self.engine, LONG, request_id=name, **ENDLESS)
            except EngineUnloadedError:
                assert self.engine.state is EngineState.UNLOADED
            except EngineTerminatedError:
                assert self.engine.state not in (EngineState.READY, EngineState.UNLOADED)
            else:
                self.readers.append((name, reader, None))

    @rule()
    @precondition(lambda self: self.serving)
    def ask(self) -> None:
        assert self.face.answer(self.engine) == ANSWER

    @rule(data=strategies.data())
    @precondition(lambda self: self.readers)
    def read(self, data: Any) -> None:
        name, reader, expected = self.readers.pop(data.draw(strategies.integers(0, len(self.readers) - 1)))
        try:
            assert len(read(reader)) > 1000
        except (EngineTerminatedError, RequestAbortedError) as error:
            self.compare(name, error, expected)
        assert reader.next() is None

    @staticmethod
    def compare(name: str, error: Exception, expected: type[Exception] | None) -> None:
        assert expected is not None, f"{name} was not cut"
        assert isinstance(error, expected)

    @rule(data=strategies.data())
    @precondition(lambda self: self.readers)
    def leave(self, data: Any) -> None:
        _, reader, _ = self.readers.pop(data.draw(strategies.integers(0, len(self.readers) - 1)))
        if data.draw(strategies.booleans()):
            reader.close()
            assert reader.next() is None

    @rule(data=strategies.data())
    @precondition(lambda self: self.readers)
    def abort(self, data: Any) -> None:
        index = data.draw(strategies.integers(0, len(self.readers) - 1))
        name, reader, expected = self.readers[index]
        self.face.call(self.engine, "abort", name)
        self.readers[index] = (name, reader, expected or RequestAbortedError)

    @rule()
    def reset(self) -> None:
        if self.serving:
            self.face.call(self.engine, "reset")
            self.cut(RequestAbortedError)

    @rule()
    def unload(self) -> None:
        if self.engine.state in (EngineState.READY, EngineState.UNLOADED):
            self.face.call(self.engine, "unload")
            self.cut(RequestAbortedError)
            assert self.engine.state is EngineState.UNLOADED

    @rule()
    def reload(self) -> None:
        if self.engine.state in (EngineState.READY, EngineState.UNLOADED):
            self.face.call(self.engine, "reload")
            self.cut(RequestAbortedError)
            assert self.serving

    @rule(drain=strategies.booleans())
    @precondition(lambda self: self.number > 3)
    def terminate(self, drain: bool) -> None:
        self.face.terminate(self.engine, drain=drain, timeout=20.0)
        if not drain:
            self.cut(EngineTerminatedError)
        assert self.engine.state is EngineState.TERMINATED

    @invariant()
    def pages_add_up(self) -> None:
        if hasattr(self, "engine") and self.serving:
            core_of(self.engine).num_free_pages()

    def teardown(self) -> None:
        if not hasattr(self, "face"):
            return
        for _, reader, _ in self.readers:
            reader.close()
        self.readers.clear()
        if self.serving:
            assert idle_and_whole(self.engine)
        for engine in self.face.engines:
            engine.terminate()
        # Before the face ends its event loop, on which they wait.
        for drain in self.drains:
            drain.result()
        self.face.finish()
        assert wait_for(lambda: num_threads() <= self.threads)


def finished(outcome: Any) -> Any:
    """The outcome of a call of either face, on an event loop of its own when it is a coroutine."""
    return asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome


def anext_of(reader: Any) -> Any:
    """Read on, without the event loop of its face, which no thread runs in a forked child."""
    return reader.next() if isinstance(reader, SyncReader) else _anext(reader.stream)


async def _anext(stream: Any) -> Any:
    return await anext(stream, None)


def in_a_child(use: Callable[[], None]) -> tuple[int, str]:
    """Run ``use`` in a forked child; return its exit code, and the traceback of what it raised."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 and later warn of every fork of a process that has threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            use()
            code = 0
        except BaseException:
            os.write(write_end, traceback.format_exc().encode()[-4000:])
        finally:
            # Nothing of the test run may happen twice.
            os._exit(code)
    os.close(write_end)
    ended = wait_for(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitstatus_to_exitcode(status), said if ended else "the child hangs"


TestHistories = History.TestCase
TestHistories.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
