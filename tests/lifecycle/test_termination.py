"""T1 to T7, the documented ``terminate()`` step by step, and L9 to L14: from everywhere, at once, and completely."""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from support.lifecycle import (
    ANSWER,
    ENDLESS,
    FACES,
    LIMIT,
    LLAMA_1B,
    LONG,
    MIDDLE,
    PROMPT,
    AsyncFace,
    Face,
    Gate,
    Started,
    ask,
    core_of,
    mapped_files,
    num_descriptors,
    num_mappings,
    num_threads,
    read,
    replace_run,
    resident_bytes,
    slow_down,
    wait_for,
    write_shape,
)
from windlass import (
    AsyncMLCEngine,
    EngineConfig,
    EngineError,
    EngineFailedError,
    EngineTerminatedError,
    MLCEngine,
    RequestAbortedError,
)
from windlass.engine.state import EngineState
from windlass.serve.engine_base import MLCEngineBase

NO_EVENT = (None, None, None, None)
"""What the stream-back thread has nothing to do for."""


def count_exits(engine: MLCEngineBase) -> list[str]:
    """Note the name of the thread of every call of the exit function, which still works."""
    calls: list[str] = []
    original = engine._ffi["exit_background_loop"]

    def exit_background_loop() -> None:
        calls.append(threading.current_thread().name)
        original()

    engine._ffi["exit_background_loop"] = exit_background_loop
    return calls


# T1 to T7


def test_T1_a_second_call_does_nothing(engine: MLCEngineBase) -> None:
    exits = count_exits(engine)
    engine.terminate()
    engine.terminate()
    engine.terminate(drain=True, timeout=1.0)
    assert len(exits) == 1
    assert engine.state is EngineState.TERMINATED


def test_T1_L09_many_threads_return_after_the_same_complete_termination(face: Face, engine: MLCEngineBase) -> None:
    exits = count_exits(engine)
    states: list[EngineState] = []
    start = threading.Barrier(16)

    def terminate(i: int) -> None:
        start.wait(LIMIT)
        if i % 2:
            engine.terminate()
        else:
            face.terminate(engine)
        states.append(engine.state)

    for one in [Started(terminate, i) for i in range(16)]:
        one.result()
    assert states == [EngineState.TERMINATED] * 16
    assert len(exits) == 1


def test_T2_no_request_is_accepted_once_termination_was_requested(face: Face, engine: MLCEngineBase) -> None:
    seen: list[object] = []
    original = engine._ffi["exit_background_loop"]

    def look() -> None:
        seen.append(engine._terminated)
        with pytest.raises(EngineTerminatedError):
            face.stream(engine)
        original()

    engine._ffi["exit_background_loop"] = look
    engine.terminate()
    assert seen == [True]
    with pytest.raises(EngineTerminatedError, match="terminated"):
        face.stream(engine)


@pytest.mark.parametrize("kind", [MLCEngine, AsyncMLCEngine])
def test_T3_a_half_built_engine_can_be_terminated(kind: type[MLCEngineBase]) -> None:
    engine = kind.__new__(kind)
    engine.terminate()
    engine.terminate()
    assert "not constructed" in repr(engine)


def test_T4_T5_T6_both_loops_are_told_and_joined(engine: MLCEngineBase) -> None:
    loop, stream_back = engine._background_loop_thread, engine._background_stream_back_loop_thread
    assert loop.is_alive()
    assert stream_back.is_alive()
    exits = count_exits(engine)
    engine.terminate()
    assert exits == [threading.current_thread().name]
    assert not loop.is_alive()
    assert not stream_back.is_alive()


# L9: from every place


def test_L09_from_a_stream_s_own_loop(face: Face) -> None:
    engine = face.build(slow=True)
    reader = face.stream(engine, LONG, **ENDLESS)

    def use() -> None:
        while reader.next() is not None:
            engine.terminate()

    with pytest.raises(EngineTerminatedError):
        use()
    assert engine.state is EngineState.TERMINATED


@pytest.mark.parametrize("plain", [True, False])
def test_L09_from_an_async_stream_s_own_loop(plain: bool) -> None:
    face = AsyncFace()
    engine = face.build(slow=True)
    assert isinstance(engine, AsyncMLCEngine)

    async def use() -> None:
        async for _ in await ask(engine, LONG, stream=True, **ENDLESS):
            if plain:
                engine.terminate()
            else:
                await engine.aterminate()

    with pytest.raises(EngineTerminatedError):
        face.run(use())
    assert engine.state is EngineState.TERMINATED
    face.finish()


@pytest.mark.parametrize("drain", [False, True])
def test_L09_from_the_engine_s_own_threads(face: Face, drain: bool) -> None:
    def loop(engine: MLCEngineBase, terminate: Callable[[], None]) -> None:
        core_of(engine)._inbox.put(terminate)

    def stream_back(engine: MLCEngineBase, terminate: Callable[[], None]) -> None:
        core_of(engine)._stream_back.publish(Calling(terminate))  # type: ignore[arg-type]

    def preparer(engine: MLCEngineBase, terminate: Callable[[], None]) -> None:
        assert engine._preparer is not None
        # The caller is told, by the work itself, before the work has returned.
        with suppress(EngineTerminatedError):
            engine._preparer.call(terminate, lambda _: None)

    class Calling:
        def __init__(self, call: Callable[[], None]) -> None:
            self._call = call

        def __iter__(self) -> Any:
            self._call()
            return iter([NO_EVENT])

    for place in (loop, stream_back, preparer):
        engine = face.build(slow=True)
        waiting = Started(face.create, engine, LONG, **ENDLESS)
        assert wait_for(lambda engine=engine: core_of(engine).num_open == 1)  # type: ignore[misc]
        returned = threading.Event()

        def terminate_there(engine: MLCEngineBase = engine, returned: threading.Event = returned) -> None:
            engine.terminate(drain=drain)
            returned.set()

        place(engine, terminate_there)
        assert returned.wait(LIMIT)
        assert waiting.ended()
        assert isinstance(waiting.error, EngineTerminatedError)
        engine.terminate()
        assert engine.state is EngineState.TERMINATED
        assert not any(thread.is_alive() for thread in engine._own_threads())


def test_L09_an_interrupted_termination_is_taken_over(engine: MLCEngineBase) -> None:
    thread = engine._background_stream_back_loop_thread
    join = thread.join

    def interrupted(_: float | None = None) -> None:
        raise KeyboardInterrupt

    thread.join = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.terminate()
    assert engine.state is EngineState.TERMINATING
    thread.join = join  # type: ignore[method-assign]
    engine.terminate()
    assert engine.state is EngineState.TERMINATED


def test_L09_a_call_from_within_returns_at_once(engine: MLCEngineBase) -> None:
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


def test_L09_inside_exit_with_an_exception_in_flight(face: Face) -> None:
    engine = face.build(slow=True)
    readers: list[Any] = []

    def fail_within() -> None:
        with face.block(engine):
            readers.append(face.stream(engine, LONG, **ENDLESS))
            try:
                raise KeyError("x")
            finally:
                engine.terminate()

    with pytest.raises(KeyError):
        fail_within()
    with pytest.raises(EngineTerminatedError):
        read(readers[0])


class Terminator:
    """Terminates an engine in its finalizer. In a cycle, so that only the garbage collector runs it."""

    def __init__(self, engine: MLCEngineBase) -> None:
        self.engine = engine
        self.cycle = self

    def __del__(self) -> None:
        self.engine.terminate()


@pytest.mark.parametrize("lock", ["lifecycle", "terminate", "load", "admission"])
def test_L09_a_finalizer_terminates_while_its_thread_holds_a_lock(face: Face, lock: str) -> None:
    engine = face.build(slow=True)
    waiting = Started(face.create, engine, LONG, **ENDLESS)
    assert wait_for(lambda: core_of(engine).num_open == 1)
    locks = {
        "lifecycle": engine._lifecycle._lock,
        "terminate": engine._terminate_lock,
        "load": engine._load_lock,
        "admission": core_of(engine)._accounts._lock,
    }

    def collect() -> None:
        with locks[lock]:
            Terminator(engine)
            gc.collect()

    assert Started(collect).ended()
    assert waiting.ended()
    assert isinstance(waiting.error, EngineTerminatedError)
    engine.terminate()
    assert engine.state is EngineState.TERMINATED


@pytest.mark.parametrize("place", ["engine", "stream-back"])
@pytest.mark.parametrize("terminator", [True, False], ids=["terminate", "drop"])
def test_L09_a_finalizer_runs_in_an_engine_thread(face: Face, place: str, terminator: bool) -> None:
    """The garbage collector meets an engine, or whoever terminates one, in a thread of that very engine."""
    threads = num_threads()
    engine = face.build(tracked=False)
    core = core_of(engine)
    done = threading.Event()

    class Collecting:
        def __iter__(self) -> Any:
            self.collect()
            return iter([NO_EVENT])

        def collect(self) -> None:
            with core.lifecycle._lock:
                gc.collect()
            done.set()

    if terminator:
        Terminator(engine)
    else:
        engine.cycle = engine  # type: ignore[attr-defined]
    with nullcontext() if terminator else pytest.warns(ResourceWarning):
        kept = engine if terminator else None
        del engine
        if place == "engine":
            core._inbox.put(Collecting().collect)
        else:
            core._stream_back.publish(Collecting())  # type: ignore[arg-type]
        assert done.wait(LIMIT)
        assert wait_for(lambda: num_threads() <= threads)
    if kept is not None:
        kept.terminate()
        assert kept.state is EngineState.TERMINATED


SIGNALS = """
import signal, sys, time, random, asyncio
from windlass import AsyncMLCEngine, EngineConfig, EngineError, MLCEngine, RequestError
random.seed(int(sys.argv[2]))
kind = {"sync": MLCEngine, "async": AsyncMLCEngine}[sys.argv[1]]
message = [{"role": "user", "content": "Tell me a story about a fox."}]
current = None
def handler(*_):
    current.terminate()
signal.signal(signal.SIGALRM, handler)
def sync_use(engine, how):
    while True:
        if how == 0:
            engine.chat.completions.create(messages=message, max_tokens=5)
        elif how == 1:
            for _ in engine.chat.completions.create(messages=message, stream=True): pass
        elif how == 2:
            engine.unload(); engine.reload()
        elif how == 3:
            engine.reset()
        else:
            engine.chat.completions.create(messages=message, stream=True, max_tokens=900)
            engine.terminate(drain=True)
            return
async def async_use(engine, how):
    while True:
        if how == 0:
            await engine.chat.completions.create(messages=message, max_tokens=5)
        elif how == 1:
            async for _ in await engine.chat.completions.create(messages=message, stream=True): pass
        elif how == 2:
            await engine.unload(); await engine.reload()
        elif how == 3:
            await engine.reset()
        else:
            stream = await engine.chat.completions.create(messages=message, stream=True, max_tokens=900)
            await engine.aterminate(drain=True)
            return
worst = 0
for i in range(int(sys.argv[3])):
    current = engine = kind(engine_config=EngineConfig(num_threads=1, verbose=False))
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.03))
    try:
        if kind is MLCEngine:
            sync_use(engine, i % 5)
        else:
            asyncio.run(async_use(engine, i % 5))
    except (EngineError, RequestError):
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    started = time.monotonic()
    engine.terminate()
    worst = max(worst, time.monotonic() - started)
    assert engine.state.value == "terminated", engine
    assert not any(thread.is_alive() for thread in engine._own_threads())
print("ok")
"""


@pytest.mark.parametrize("name", FACES)
def test_L09_from_a_signal_handler(name: str) -> None:
    script = [sys.executable, "-X", "faulthandler", "-c", SIGNALS, name, "7", "60"]
    result = subprocess.run(script, capture_output=True, text=True, timeout=3 * LIMIT)
    assert (result.stdout, result.stderr, result.returncode) == ("ok\n", "", 0)


def test_L09_a_signal_handler_terminates_while_its_thread_starts_a_thread(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds a lock then, of ``threading`` itself, without which no thread of the engine can end."""
    engine = face.build(slow=True)
    waiting = Started(face.create, engine, LONG, **ENDLESS)
    assert wait_for(lambda: core_of(engine).num_open == 1)

    class Limbo(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            if key.name == "started":
                engine.terminate()
                states.append(engine.state)
            super().__setitem__(key, value)

    states: list[EngineState] = []
    monkeypatch.setattr(threading, "_limbo", Limbo())
    one = threading.Thread(target=lambda: None, name="started", daemon=True)
    starting = Started(one.start)
    assert starting.ended(5.0), "terminate hangs"
    assert states == [EngineState.TERMINATED]
    assert waiting.ended()
    assert isinstance(waiting.error, EngineTerminatedError)
    assert wait_for(lambda: not any(thread.is_alive() for thread in engine._own_threads()))
    one.join()


# L10, L11: prompt


@pytest.mark.parametrize("plain", [True, False])
def test_L10_consumers_are_told_first_and_at_once(face: Face, plain: bool) -> None:
    engine = face.build(slow=True, max_num_sequence=2)
    readers = [face.stream(engine, LONG, **ENDLESS) for _ in range(4)]
    readers[0].next()
    waiting = [Started(read, reader) for reader in readers[:3]]
    waiting += [Started(face.create, engine, LONG, **ENDLESS) for _ in range(3)]
    assert wait_for(lambda: core_of(engine).num_open == 7)
    started = time.monotonic()
    if plain:
        engine.terminate()
    else:
        face.terminate(engine)
    print(f"terminate took {1000 * (time.monotonic() - started):.1f} ms")
    for one in waiting:
        assert one.ended()
        assert isinstance(one.error, EngineTerminatedError)
    told = max(one.ended_at for one in waiting) - started
    print(f"the last consumer knew after {1000 * told:.1f} ms")
    assert told < PROMPT
    with pytest.raises(EngineTerminatedError):
        read(readers[3])


@pytest.mark.parametrize("state", ["terminated", "unloaded"])
def test_L11_who_is_refused_and_tries_again_at_once_gives_way(face: Face, engine: MLCEngineBase, state: str) -> None:
    """As the threads of an engine that ends, or loads, need: each lock they wait for costs them the interpreter's."""
    if state == "terminated":
        engine.terminate()
    else:
        face.call(engine, "unload")
    over, begun = threading.Event(), threading.Event()

    async def try_again() -> None:
        while not over.is_set():
            try:
                outcome = ask(engine)
                if isinstance(engine, AsyncMLCEngine):
                    await outcome
            except EngineError:
                begun.set()

    before = sys.getswitchinterval()
    # Python takes the interpreter from nobody who does not give it away.
    sys.setswitchinterval(2 * PROMPT)
    try:
        trying = Started(asyncio.run, try_again())
        assert begun.wait(LIMIT)
        started, turns = time.monotonic(), 0
        while turns < 20 and time.monotonic() - started < PROMPT:
            time.sleep(0)
            turns += 1
    finally:
        over.set()
        sys.setswitchinterval(before)
    trying.result()
    assert turns == 20


def test_L10_consumers_are_told_before_the_step_ends(face: Face, engine: MLCEngineBase) -> None:
    gate = Gate(engine)
    gate.shut()
    waiting = Started(face.create, engine)
    assert gate.held.wait(LIMIT)
    ending = Started(engine.terminate)
    assert waiting.ended()
    assert isinstance(waiting.error, EngineTerminatedError)
    assert engine._background_loop_thread.is_alive()
    gate.open.set()
    assert ending.ended()


def test_L11_L12_terminate_in_the_middle_of_a_prefill_frees_everything_at_once(face: Face, tmp_path: Path) -> None:
    model = write_shape(tmp_path, **MIDDLE)
    settings: dict[str, Any] = {"model": model, "load_format": "dummy", "max_total_sequence_length": 4096}
    settings["prefill_chunk_size"] = 2048
    # The first engine of the process has paid for what stays for ever.
    for busy in (False, True):
        before, files = resident_bytes(), mapped_files()
        engine = face.build(**settings)
        loaded = resident_bytes()
        waiting = None
        if busy:
            core = core_of(engine)
            assert core._runtime is not None
            executor = core._runtime.executor
            waiting = Started(face.complete, engine, [5 + i % 1000 for i in range(3000)], max_tokens=5)
            assert wait_for(lambda: executor.progress > 200)  # noqa: B023
        started = time.monotonic()
        engine.terminate()
        took = time.monotonic() - started
        after = resident_bytes()
        print(
            f"terminate took {1000 * took:.1f} ms, busy: {busy}; RSS before {before >> 20} MiB, "
            f"loaded {loaded >> 20} MiB, after {after >> 20} MiB"
        )
        assert took < PROMPT
        if waiting is not None:
            assert waiting.ended()
            assert isinstance(waiting.error, EngineTerminatedError)
            assert waiting.ended_at - started < PROMPT
        assert loaded - before > 100 << 20
        assert after - before < max(8 << 20, (loaded - before) // 50) or not busy
        assert mapped_files() == files


@pytest.mark.slow
def test_L11_terminate_in_the_middle_of_a_prefill_of_the_1B_shape(face: Face, tmp_path: Path) -> None:
    model = write_shape(tmp_path, **LLAMA_1B)
    engine = face.build(model=model, load_format="dummy", quantization="q4f16_1", max_total_sequence_length=4352)
    core = core_of(engine)
    assert core._runtime is not None
    executor = core._runtime.executor
    waiting = Started(face.complete, engine, [5 + i % 1000 for i in range(4000)], max_tokens=5)
    assert wait_for(lambda: executor.progress > 5000)
    started = time.monotonic()
    engine.terminate()
    took = time.monotonic() - started
    assert waiting.ended()
    print(f"terminate took {1000 * took:.1f} ms; the caller knew after {1000 * (waiting.ended_at - started):.1f} ms")
    assert took < 0.25
    assert waiting.ended_at - started < 0.1


# L12, L13, L14


def test_L12_nothing_of_the_engine_is_left_when_terminate_returns(face: Face) -> None:
    gc.collect()
    gc.disable()
    try:
        threads, descriptors, files = num_threads(), num_descriptors(), mapped_files()
        engine = face.build()
        reader = face.stream(engine, LONG, **ENDLESS)
        assert face.answer(engine) == ANSWER
        assert num_threads() > threads
        face.terminate(engine)
        # Python's join returns a moment before the system has seen the thread off.
        assert wait_for(lambda: num_threads() == threads, 0.1), threading.enumerate()
        assert num_descriptors() == descriptors
        assert mapped_files() == files
        with pytest.raises(EngineTerminatedError):
            read(reader)
    finally:
        gc.enable()


def test_L12_nothing_that_is_kept_keeps_the_model(face: Face) -> None:
    """A stream that is held, read or not, and the engine itself hold neither tokenizer nor weights."""
    gc.collect()
    gc.disable()
    try:
        before = _alive()
        engine = face.build(slow=True)
        assert _alive() > before
        readers = [face.stream(engine), face.stream(engine, LONG, **ENDLESS), face.stream(engine, LONG, **ENDLESS)]
        assert read(readers[0]) == ANSWER
        readers[1].next()
        engine.terminate()
        assert wait_for(lambda: _alive() == before, 1.0), "text models are still alive"
        del readers
    finally:
        gc.enable()


def _alive() -> int:
    """Text models that exist."""
    return sum(type(one).__name__ == "TextModel" for one in gc.get_objects())


def test_L13_after_the_end_everything_says_so(face: Face, engine: MLCEngineBase) -> None:
    face.terminate(engine)
    with pytest.raises(EngineTerminatedError):
        face.create(engine)
    for name in ("reload", "unload", "reset", "metrics"):
        with pytest.raises(EngineTerminatedError):
            face.call(engine, name)
    with pytest.raises(EngineTerminatedError):
        _ = engine.tokenizer
    face.call(engine, "abort", "anything")
    engine.terminate()
    assert engine.state is EngineState.TERMINATED
    assert "terminated" in repr(engine)


def test_L13_metrics_work_in_every_other_state(face: Face) -> None:
    engine = face.build(slow=True)
    seen: list[EngineState] = []

    def look() -> None:
        metrics = engine.metrics()  # type: ignore[attr-defined]
        state = (asyncio.run(metrics) if asyncio.iscoroutine(metrics) else metrics).state
        assert state is engine.state
        seen.append(state)

    look()
    face.call(engine, "unload")
    look()
    face.call(engine, "reload")
    slow_down(engine)
    reader = face.stream(engine, LONG, **ENDLESS)
    drained = Started(face.terminate, engine, drain=True)
    assert wait_for(lambda: engine.state is EngineState.DRAINING)
    look()
    # In the middle of the end itself.
    original = engine._ffi["exit_background_loop"]

    def exit_background_loop() -> None:
        look()
        original()

    engine._ffi["exit_background_loop"] = exit_background_loop
    engine.terminate()
    assert drained.ended()
    with pytest.raises(EngineTerminatedError):
        look()
    with pytest.raises(EngineTerminatedError):
        read(reader)
    assert seen == [EngineState.READY, EngineState.UNLOADED, EngineState.DRAINING, EngineState.TERMINATING]

    failing = face.build()

    def fail(*_: Any) -> Any:
        raise OSError(5, "injected")

    replace_run(failing, fail)
    with pytest.raises(EngineFailedError):
        face.create(failing)
    engine = failing
    look()
    assert seen[-1] is EngineState.FAILED


def test_L14_engines_at_the_same_time_share_nothing(face: Face) -> None:
    engines = [face.build(slow=i == 0) for i in range(3)]
    readers = [face.stream(engine, LONG, **ENDLESS) for engine in engines]
    engines[0].terminate()
    with pytest.raises(EngineTerminatedError):
        read(readers[0])
    texts = [read(reader) for reader in readers[1:]]
    assert texts[0] == texts[1]
    assert face.answer(engines[1]) == face.answer(engines[2]) == ANSWER


def cycle(face: Face, count: int) -> tuple[int, int, int, int]:
    """Build, use and terminate engines; return RSS, threads, descriptors and mappings afterwards."""
    threads = num_threads()
    for i in range(count):
        engine = face.build(tracked=False)
        if i % 3 == 0:
            reader = face.stream(engine, LONG, **ENDLESS)
            reader.next()
        assert face.answer(engine) == ANSWER
        face.terminate(engine)
    wait_for(lambda: num_threads() <= threads, 1.0)
    return resident_bytes(), num_threads(), num_descriptors(), num_mappings()


def test_L14_cycles_leave_nothing(face: Face) -> None:
    cycle(face, 10)
    first = cycle(face, 1)
    last = cycle(face, 30)
    print(f"30 cycles: RSS {(last[0] - first[0]) / 1024:.0f} KiB, mappings {last[3] - first[3]:+d}")
    assert last[0] - first[0] < 4 << 20
    assert last[1:3] == first[1:3]
    assert last[3] - first[3] <= 4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_L14_a_thousand_cycles_leave_nothing(face: Face) -> None:
    cycle(face, 50)
    points = [cycle(face, 100) for _ in range(10)]
    print(
        *(f"RSS {rss >> 10} KiB, {threads} threads, {fds} fds, {maps} maps" for rss, threads, fds, maps in points),
        sep="\n",
    )
    steps = [after[0] - before[0] for before, after in itertools.pairwise(points)]
    print(f"{sum(steps) / 900:.0f} bytes per cycle, median {statistics.median(steps) / 100:.0f}")
    assert statistics.median(steps) < 100 * 1024
    # Python may need one more of its arenas of 1 MiB, some time.
    assert sum(steps) < 900 * 1024 + (1 << 20)
    assert {point[1:3] for point in points} == {points[0][1:3]}
    assert abs(points[-1][3] - points[0][3]) <= 4


# Drains and blocks


def test_a_block_that_ends_well_lets_answers_finish(face: Face) -> None:
    engine = face.build(slow=True)
    with face.block(engine):
        reader = face.stream(engine)
    assert engine.state is EngineState.TERMINATED
    assert read(reader) == ANSWER


def test_an_interrupted_drain_of_a_block_still_ends_the_engine(sync_face: Face) -> None:
    engine = sync_face.build(slow=True)
    original = engine._drain

    def interrupted(_: float | None) -> None:
        original(0.01)
        raise KeyboardInterrupt

    engine._drain = interrupted  # type: ignore[method-assign]

    def use() -> None:
        with sync_face.block(engine):
            readers.append(sync_face.stream(engine, LONG, **ENDLESS))

    readers: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        use()
    assert engine.state is EngineState.TERMINATED
    with pytest.raises(EngineTerminatedError):
        read(readers[0])
    del engine._drain


def test_drain_refuses_new_requests_and_finishes_accepted_ones_also_waiting_ones(face: Face) -> None:
    engine = face.build(slow=True, max_num_sequence=1)
    readers = [face.stream(engine) for _ in range(3)]
    drained = Started(face.terminate, engine, drain=True, timeout=LIMIT)
    assert wait_for(lambda: engine.state is not EngineState.READY)
    with pytest.raises(EngineTerminatedError):
        face.create(engine)
    assert [read(reader) for reader in readers] == [ANSWER] * 3
    assert drained.ended()
    assert engine.state is EngineState.TERMINATED


def test_abort_works_while_draining_and_ends_the_drain(face: Face) -> None:
    engine = face.build(slow=True)
    reader = face.stream(engine, LONG, request_id="it", **ENDLESS)
    drained = Started(face.terminate, engine, drain=True)
    assert wait_for(lambda: engine.state is EngineState.DRAINING)
    face.call(engine, "abort", "it")
    assert drained.ended()
    with pytest.raises(RequestAbortedError):
        read(reader)


def test_terminate_cuts_a_drain_short_and_the_shorter_timeout_wins(face: Face) -> None:
    for second in ({}, {"drain": True, "timeout": 0.05}):
        engine = face.build(slow=True)
        reader = face.stream(engine, LONG, **ENDLESS)
        drained = Started(face.terminate, engine, drain=True, timeout=60.0)
        assert wait_for(lambda engine=engine: engine.state is EngineState.DRAINING)  # type: ignore[misc]
        started = time.monotonic()
        face.terminate(engine, **second)
        assert drained.ended()
        assert time.monotonic() - started < 2 * PROMPT
        with pytest.raises(EngineTerminatedError):
            read(reader)


def test_a_drain_with_a_timeout_cuts_what_is_not_finished(face: Face) -> None:
    engine = face.build(slow=True)
    short, long = face.stream(engine), face.stream(engine, LONG, **ENDLESS)
    face.terminate(engine, drain=True, timeout=0.5)
    assert read(short) == ANSWER
    with pytest.raises(EngineTerminatedError):
        read(long)


def test_terminate_during_a_reload_ends_both(face: Face, tmp_path: Path) -> None:
    model = write_shape(tmp_path, **MIDDLE)
    engine = face.build(model=model, load_format="dummy", max_total_sequence_length=1024)
    reloading = Started(face.call, engine, "reload")
    assert wait_for(lambda: engine.state is EngineState.LOADING)
    started = time.monotonic()
    engine.terminate()
    print(f"terminate in the middle of a reload took {1000 * (time.monotonic() - started):.1f} ms")
    assert reloading.ended()
    assert isinstance(reloading.error, EngineTerminatedError)
    assert engine.state is EngineState.TERMINATED


def test_engines_follow_each_other_with_blocks() -> None:
    for _ in range(2):
        with MLCEngine(engine_config=EngineConfig(verbose=False)) as engine:
            assert ask(engine).choices[0].message.content == ANSWER
