"""L3 to L18 in any order: random histories of one engine, against a model of what every call may end with."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.lifecycle import (
    ANSWER,
    ENDLESS,
    FACES,
    LONG,
    Face,
    Reader,
    Started,
    core_of,
    idle_and_whole,
    num_threads,
    read,
    wait_for,
)
from windlass import EngineTerminatedError, EngineUnloadedError, RequestAbortedError
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
    )
    def build(self, face: str, sequences: int, drafts: int) -> None:
        self.face = FACES[face]()
        self.engine = self.face.build(max_num_sequence=sequences, spec_draft_length=drafts)

    def cut(self, error: type[Exception]) -> None:
        """Every open stream that has not finished ends with ``error``."""
        self.readers = [(name, reader, expected or error) for name, reader, expected in self.readers]

    @property
    def serving(self) -> bool:
        return self.engine.state is EngineState.READY

    @rule()
    def submit(self) -> None:
        self.number += 1
        name = f"r{self.number}"
        try:
            reader = self.face.stream(self.engine, LONG, request_id=name, **ENDLESS)
        except EngineUnloadedError:
            assert self.engine.state is EngineState.UNLOADED
        except EngineTerminatedError:
            assert self.engine.state is not EngineState.READY
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
        self.face.finish()
        assert wait_for(lambda: num_threads() <= self.threads)


TestHistories = History.TestCase
TestHistories.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
