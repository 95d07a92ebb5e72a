"""T1 to T7: the documented ``terminate()``, step by step, on the demo model; and what ends with it."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from support.lifecycle import (
    ANSWER,
    LIMIT,
    LONG,
    ask,
    mapped_files,
    num_descriptors,
    num_threads,
    resident_bytes,
    wait_for,
)
from windlass import AsyncMLCEngine, EngineConfig, EngineTerminatedError, LoadError, MLCEngine
from windlass.engine.state import EngineState
from windlass.serve import engine_base


def count_exits(engine: MLCEngine) -> list[str]:
    """Note the name of the thread of every call of the exit function, which still works."""
    calls: list[str] = []
    original = engine._ffi["exit_background_loop"]

    def exit_background_loop() -> None:
        calls.append(threading.current_thread().name)
        original()

    engine._ffi["exit_background_loop"] = exit_background_loop
    return calls


def test_t1_a_second_call_does_nothing(engine: MLCEngine) -> None:
    exits = count_exits(engine)
    engine.terminate()
    engine.terminate()
    engine.terminate(drain=True, timeout=1.0)
    assert len(exits) == 1
    assert engine.state is EngineState.TERMINATED


def test_t1_many_threads_return_after_the_same_complete_termination(engine: MLCEngine) -> None:
    exits = count_exits(engine)
    states: list[EngineState] = []
    start = threading.Barrier(8)

    def terminate() -> None:
        start.wait(LIMIT)
        engine.terminate()
        states.append(engine.state)

    threads = [threading.Thread(target=terminate) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert states == [EngineState.TERMINATED] * 8
    assert len(exits) == 1


def test_t1_an_engine_thread_may_call_it_and_another_call_completes_it(engine: MLCEngine) -> None:
    core = engine._core
    assert core is not None
    returned = threading.Event()

    def terminate_there() -> None:
        engine.terminate()
        returned.set()

    core._inbox.put(terminate_there)
    assert returned.wait(LIMIT)
    engine.terminate()
    assert engine.state is EngineState.TERMINATED
    assert not engine._background_loop_thread.is_alive()


def test_t1_an_interrupted_termination_is_taken_over(engine: MLCEngine) -> None:
    thread = engine._background_stream_back_loop_thread
    join = thread.join

    def interrupted() -> None:
        raise KeyboardInterrupt

    thread.join = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.terminate()
    assert engine.state is EngineState.TERMINATING
    thread.join = join  # type: ignore[method-assign]
    engine.terminate()
    assert engine.state is EngineState.TERMINATED


def test_t1_a_call_from_within_returns_at_once(engine: MLCEngine) -> None:
    """As a signal handler does that runs in the middle of terminate."""
    original = engine._join_loops
    depth: list[EngineState] = []

    def join_and_call_again() -> None:
        engine.terminate()
        depth.append(engine.state)
        original()

    engine._join_loops = join_and_call_again  # type: ignore[method-assign]
    engine.terminate()
    assert depth == [EngineState.TERMINATING]
    assert engine.state is EngineState.TERMINATED
    del engine._join_loops


def test_t2_no_request_is_accepted_once_termination_was_requested(engine: MLCEngine) -> None:
    seen: list[object] = []
    original = engine._ffi["exit_background_loop"]

    def look() -> None:
        seen.append(engine._terminated)
        with pytest.raises(EngineTerminatedError):
            ask(engine)
        original()

    engine._ffi["exit_background_loop"] = look
    engine.terminate()
    assert seen == [True]
    with pytest.raises(EngineTerminatedError, match="terminated"):
        ask(engine)
    with pytest.raises(EngineTerminatedError):
        _ = engine.tokenizer


@pytest.mark.parametrize("kind", [MLCEngine, AsyncMLCEngine])
def test_t3_a_half_built_engine_can_be_terminated(kind: type[MLCEngine]) -> None:
    engine = kind.__new__(kind)
    engine.terminate()
    engine.terminate()
    assert "not constructed" in repr(engine)


def test_t3_a_constructor_that_raises_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(warm := MLCEngine())
    warm.terminate()
    threads, descriptors, files = num_threads(), num_descriptors(), mapped_files()
    with pytest.raises(LoadError):
        MLCEngine(str(tmp_path / "nowhere"))

    def failing_start(self: threading.Thread) -> None:
        if self.name == "windlass-engine":
            raise RuntimeError("can't start new thread")
        original(self)

    original = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", failing_start)
    with pytest.raises(RuntimeError, match="can't start"):
        MLCEngine()
    monkeypatch.undo()
    assert wait_for(lambda: num_threads() <= threads)
    assert num_descriptors() == descriptors
    assert mapped_files() == files


def test_t4_to_t6_both_loops_are_told_and_joined(engine: MLCEngine) -> None:
    loop, stream_back = engine._background_loop_thread, engine._background_stream_back_loop_thread
    assert loop.is_alive()
    assert stream_back.is_alive()
    exits = count_exits(engine)
    engine.terminate()
    assert exits == [threading.current_thread().name]
    assert not loop.is_alive()
    assert not stream_back.is_alive()


def test_t7_dropping_the_last_reference_ends_the_engine_and_warns() -> None:
    threads = num_threads()
    engine = MLCEngine(engine_config=EngineConfig(verbose=False))
    assert ask(engine).choices[0].message.content == ANSWER
    reference = weakref.ref(engine)
    with pytest.warns(ResourceWarning, match="without terminate"):
        del engine
    assert reference() is None, "an engine must be in no reference cycle"
    assert wait_for(lambda: num_threads() <= threads)


def test_an_open_stream_keeps_its_engine_alive() -> None:
    threads = num_threads()
    stream = ask(MLCEngine(), stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in _warned(stream))
    assert text == ANSWER
    assert wait_for(lambda: num_threads() <= threads)


def _warned(stream):  # type: ignore[no-untyped-def]
    """Read a stream whose engine goes with its last chunk, and warns."""
    with pytest.warns(ResourceWarning):
        yield from stream


def test_open_streams_and_waiting_calls_raise_promptly(engine: MLCEngine) -> None:
    stream = ask(engine, LONG, max_tokens=800, stream=True)
    next(stream)
    outcomes: dict[str, float] = {}

    def wait(name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except EngineTerminatedError:
            outcomes[name] = time.monotonic()

    waiting = [
        threading.Thread(target=wait, args=("stream", lambda: [*stream])),
        threading.Thread(target=wait, args=("call", lambda: ask(engine, LONG, max_tokens=800))),
    ]
    core = engine._core
    assert core is not None
    for thread in waiting:
        thread.start()
    assert wait_for(lambda: core.num_open == 2)
    started = time.monotonic()
    engine.terminate()
    for thread in waiting:
        thread.join(LIMIT)
    assert set(outcomes) == {"stream", "call"}
    assert max(outcomes.values()) - started < 1.0
    with pytest.raises(StopIteration):
        next(stream)


def test_a_finished_stream_stays_readable_after_terminate(engine: MLCEngine) -> None:
    stream = ask(engine, stream=True, stream_options={"include_usage": True})
    core = engine._core
    assert core is not None
    assert core.wait_until_idle(LIMIT)
    engine.terminate()
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage.completion_tokens > 3


def test_memory_is_given_back_and_engines_follow_each_other() -> None:
    for _ in range(3):
        with MLCEngine() as engine:
            ask(engine)
    before, files = resident_bytes(), mapped_files()
    for _ in range(20):
        with MLCEngine() as engine:
            assert ask(engine).choices[0].message.content == ANSWER
    assert resident_bytes() - before < 8 << 20
    assert mapped_files() == files


def test_a_with_block_that_ends_well_lets_answers_finish() -> None:
    with MLCEngine() as engine:
        stream = ask(engine, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER


def test_a_with_block_that_raises_terminates_at_once() -> None:
    def fail_within() -> None:
        with MLCEngine() as engine:
            streams.append(ask(engine, LONG, max_tokens=800, stream=True))
            raise KeyError("x")

    streams: list = []
    with pytest.raises(KeyError):
        fail_within()
    with pytest.raises(EngineTerminatedError):
        list(streams[0])


def test_drain_refuses_new_requests_and_finishes_accepted_ones(engine: MLCEngine) -> None:
    stream = ask(engine, LONG, max_tokens=100, stream=True)
    drained = threading.Thread(target=engine.terminate, kwargs={"drain": True, "timeout": LIMIT})
    drained.start()
    assert wait_for(lambda: engine.state is not EngineState.READY)
    with pytest.raises(EngineTerminatedError):
        ask(engine)
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    drained.join(LIMIT)
    assert engine.state is EngineState.TERMINATED


def test_terminate_cuts_a_drain_short(engine: MLCEngine) -> None:
    stream = ask(engine, LONG, max_tokens=800, stream=True)
    core = engine._core
    assert core is not None
    hold = threading.Event()
    core._inbox.put(lambda: hold.wait(LIMIT))
    drained = threading.Thread(target=engine.terminate, kwargs={"drain": True})
    drained.start()
    assert wait_for(lambda: engine.state is EngineState.DRAINING)
    hold.set()
    engine.terminate()
    drained.join(LIMIT)
    assert not drained.is_alive()
    with pytest.raises(EngineTerminatedError):
        list(stream)


def test_what_was_refused_at_construction_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'cuda' is not supported"):
        MLCEngine(device="cuda")
    with pytest.raises(ValueError, match="mode"):
        MLCEngine(mode="fast")
    monkeypatch.setattr(
        engine_base, "load_model", lambda *_, **__: pytest.fail("loaded before its arguments were checked")
    )
    with pytest.raises(ValueError, match="device"):
        MLCEngine(device="tpu:0")
