"""L4, counted: what was refused, and why."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from support.lifecycle import LIMIT, QUESTION, Face, Started, core_of, replace_run, wait_for
from windlass.errors import (
    ContextLengthError,
    EngineFailedError,
    EngineOverloadedError,
    EngineTerminatedError,
    EngineUnloadedError,
    InvalidRequestError,
)
from windlass.serve.engine_base import MLCEngineBase


def refused(engine: MLCEngineBase) -> dict[str, int]:
    """What an engine counted."""
    return {cause: count for cause, count in engine._metrics().requests_refused.items() if count}


def counts(engine: MLCEngineBase, expected: dict[str, int]) -> bool:
    """Return whether the engine comes to count exactly this: its thread counts after the caller has the error."""
    return wait_for(lambda: refused(engine) == expected, 2.0)


def test_L04_refusals_are_counted_by_cause(face: Face) -> None:
    engine = face.build(max_waiting_requests=2, max_total_sequence_length=256)
    assert refused(engine) == {}
    for _ in range(2):
        with pytest.raises(InvalidRequestError):
            face.create(engine, temperature=-1.0)
    with pytest.raises(InvalidRequestError):
        face.complete(engine, "A", best_of=3)
    with pytest.raises(ContextLengthError):
        face.complete(engine, [5] * 300)
    assert counts(engine, {"invalid": 3, "context_length": 1})
    with pytest.raises(EngineOverloadedError):
        face.create(engine, n=3)
    face.call(engine, "unload")
    for _ in range(2):
        with pytest.raises(EngineUnloadedError):
            face.create(engine)
    assert counts(engine, {"invalid": 3, "context_length": 1, "overload": 1, "unloaded": 2})
    text = engine._metrics().prometheus_text()
    assert 'windlass_request_refusals_total{cause="overload"} 1' in text
    assert 'windlass_request_refusals_total{cause="failure"} 0' in text
    face.call(engine, "reload")
    assert face.answer(engine)
    face.call(engine, "reset")
    assert counts(engine, {})


def test_L04_refusals_are_counted_while_the_engine_drains_and_after_it_failed(face: Face) -> None:
    engine = face.build(slow=True)
    stream = face.stream(engine, QUESTION, max_tokens=500, debug_config={"ignore_eos": True})
    drain = Started(face.terminate, engine, drain=True)
    assert wait_for(lambda: core_of(engine).lifecycle.refusal() is not None)
    with pytest.raises(EngineTerminatedError):
        face.create(engine)
    assert counts(engine, {"termination": 1})
    stream.close()
    assert drain.ended()

    engine = face.build(tracked=False)

    def fail(*_: Any) -> Any:
        raise ValueError("injected failure")

    replace_run(engine, fail)
    with pytest.raises(EngineFailedError):
        face.create(engine)
    assert wait_for(lambda: not engine._background_loop_thread.is_alive())
    for _ in range(3):
        with pytest.raises(EngineFailedError):
            face.create(engine)
    # The first one was accepted.
    assert counts(engine, {"failure": 3})
    engine.terminate()


def test_L04_no_refusal_of_many_threads_is_lost(face: Face) -> None:
    engine = face.build()
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait(LIMIT)
        for _ in range(25):
            with pytest.raises(InvalidRequestError):
                face.complete(engine, "A", temperature=-1.0)

    threads = [Started(ask) for _ in range(8)]
    for thread in threads:
        thread.result()
    assert counts(engine, {"invalid": 200})
