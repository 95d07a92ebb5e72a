"""L15 to L20: dropped engines, the end of the interpreter, failures, forks, and what is not installed."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.interrupting import Interrupter, lines_of, sample
from support.lifecycle import (
    ANSWER,
    ENDLESS,
    FACES,
    LIMIT,
    LONG,
    MIDDLE,
    PROMPT,
    QUESTION,
    Face,
    Started,
    SyncFace,
    ask,
    core_of,
    num_threads,
    read,
    replace_run,
    resident_bytes,
    wait_for,
    write_shape,
)
from windlass import EngineFailedError, EngineTerminatedError, MLCEngine
from windlass.engine import loop as loop_module
from windlass.engine.loop import EngineCore
from windlass.engine.state import EngineState
from windlass.engine.stream import StreamBack
from windlass.program.executor import Batch
from windlass.serve.engine_base import MLCEngineBase

# L15: dropped


def test_L15_T7_dropping_the_last_reference_ends_the_engine_and_warns(face: Face) -> None:
    gc.collect()
    gc.disable()
    try:
        threads = num_threads()
        engine = face.build(tracked=False)
        assert face.answer(engine) == ANSWER
        reader = face.stream(engine)
        read(reader)
        if isinstance(face, SyncFace):
            # Not by pytest.raises, which keeps the error, nor for the async face, whose test harness does.
            with suppress(ValueError):
                face.create(engine, temperature=-5.0)
        reference = weakref.ref(engine)
        with pytest.warns(ResourceWarning, match="without terminate"):
            del engine
            assert wait_for(lambda: num_threads() <= threads), "an engine must be in no reference cycle"
        # The warning, as long as it was kept, kept the engine.
        assert reference() is None
    finally:
        gc.enable()


def test_L15_a_terminated_engine_is_dropped_in_silence(face: Face) -> None:
    engine = face.build(tracked=False)
    engine.terminate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del engine


def test_L15_an_open_stream_keeps_its_engine(face: Face) -> None:
    threads = num_threads()
    reader = face.stream(face.build(tracked=False, slow=True))
    with pytest.warns(ResourceWarning):
        assert read(reader) == ANSWER
        assert wait_for(lambda: num_threads() <= threads)


def test_L15_a_waiting_call_keeps_its_engine() -> None:
    threads = num_threads()
    with pytest.warns(ResourceWarning):
        assert ask(MLCEngine()).choices[0].message.content == ANSWER
        assert wait_for(lambda: num_threads() <= threads)


def test_L15_a_dropped_stream_ends_the_engine_it_kept(face: Face) -> None:
    threads = num_threads()
    reader = face.stream(face.build(tracked=False, slow=True), LONG, **ENDLESS)
    reader.next()
    with pytest.warns(ResourceWarning):
        del reader
        assert wait_for(lambda: num_threads() <= threads)


def test_L20_rebinding_the_name_frees_the_old_engine_at_once(face: Face, tmp_path: Path) -> None:
    model = write_shape(tmp_path, **MIDDLE)
    settings: dict[str, Any] = {"model": model, "load_format": "dummy", "max_total_sequence_length": 1024}
    gc.disable()
    try:
        with pytest.warns(ResourceWarning):
            engine = face.build(tracked=False, **settings)
            one = resident_bytes()
            for _ in range(3):
                engine = face.build(tracked=False, **settings)
            # Two are there while the next one is built, and then one again.
            assert wait_for(lambda: resident_bytes() < one + (16 << 20), PROMPT)
            face.terminate(engine)
    finally:
        gc.enable()


def test_L20_what_a_traceback_keeps_holds_no_weights(face: Face, tmp_path: Path) -> None:
    model = write_shape(tmp_path, **MIDDLE)
    settings: dict[str, Any] = {"model": model, "load_format": "dummy", "max_total_sequence_length": 1024}
    face.build(**settings).terminate()
    before = resident_bytes()

    def cell() -> None:
        engine = face.build(tracked=False, **settings)
        engines.append(weakref.ref(engine))
        try:
            raise KeyError("in the middle of a cell")
        finally:
            engine.terminate()

    engines: list[Any] = []
    with pytest.raises(KeyError) as caught:
        cell()
    assert engines[0]() is not None, "the traceback keeps the engine"
    assert caught.tb is not None
    assert resident_bytes() - before < 8 << 20


# L16: the end of the interpreter

EXIT = r"""
import asyncio, logging, os, signal, sys, threading
from windlass import AsyncMLCEngine, EngineConfig, MLCEngine

message = [{"role": "user", "content": "Tell me a story about a fox."}]
endless = {"max_tokens": 900, "debug_config": {"ignore_eos": True}, "messages": message}
logging.getLogger("asyncio").setLevel(logging.ERROR)  # -X dev tells of slow callbacks
face, case = sys.argv[1:3]
engine = {"sync": MLCEngine, "async": AsyncMLCEngine}[face](engine_config=EngineConfig(num_threads=2))

if face == "sync":
    def once(**named):
        return engine.chat.completions.create(messages=message, max_tokens=5, **named)
    def go_on(began):
        while True:
            for _ in engine.chat.completions.create(stream=True, **endless):
                began.set()
            engine.chat.completions.create(**endless)
    def serve(began):
        for _ in range(3):
            for _ in engine.chat.completions.create(stream=True, **endless):
                began.set()
        sys.stdout.write("served\n")
else:
    def once(**named):
        async def use():
            return await engine.chat.completions.create(messages=message, max_tokens=5, **named)
        return asyncio.run(use())
    def go_on(began):
        async def use():
            while True:
                async for _ in await engine.chat.completions.create(stream=True, **endless):
                    began.set()
                await engine.chat.completions.create(**endless)
        asyncio.run(use())
    def serve(began):
        async def use():
            for _ in range(3):
                async for _ in await engine.chat.completions.create(stream=True, **endless):
                    began.set()
        asyncio.run(use())
        sys.stdout.write("served\n")

once()
kept = once(stream=True)
if case == "exit":
    sys.exit(3)
if case == "exception":
    raise KeyError("nobody catches this")
if case == "interrupt":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
    go_on(threading.Event())
if case == "closed loop":
    if face == "async":
        loop = asyncio.new_event_loop()
        task = loop.create_task(engine.chat.completions.create(**endless))
        task._log_destroy_pending = False
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
if case == "terminated":
    engine.terminate()
if case in ("daemon", "serving"):
    began = threading.Event()
    use = go_on if case == "daemon" else serve
    threads = [threading.Thread(target=use, args=(began,), daemon=case == "daemon") for _ in range(2)]
    for thread in threads:
        thread.start()
    began.wait()
"""

CASES: dict[str, tuple[int, str]] = {
    "normal": (0, ""),
    "exit": (3, ""),
    "exception": (1, "KeyError"),
    "interrupt": (-signal.SIGINT, "KeyboardInterrupt"),
    "closed loop": (0, ""),
    "terminated": (0, ""),
    "daemon": (0, ""),
    "serving": (0, "served"),
}
"""Exit code, and what the program itself leaves: the last line of stderr, or what a served thread prints."""

OPTIONS: dict[str, list[str]] = {"plain": [], "dev": ["-X", "dev"], "O": ["-O"]}


def end(name: str, case: str, options: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    started = time.monotonic()
    script = [sys.executable, *options, "-c", EXIT, name, case]
    result = subprocess.run(script, capture_output=True, text=True, timeout=LIMIT)
    return time.monotonic() - started, result


@pytest.mark.parametrize("case", CASES)
def test_L16_the_engine_adds_nothing_to_the_end_of_the_interpreter(case: str) -> None:
    code, left = CASES[case]
    variants = [(name, option) for name in FACES for option in OPTIONS]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda variant: end(variant[0], case, OPTIONS[variant[1]]), variants))
    for (name, option), (_, result) in zip(variants, outcomes, strict=True):
        where = f"{case}, {name}, {option}:\n{result.stderr}"
        assert result.returncode == code, where
        if code in (0, 3):
            assert result.stderr == "", where
        else:
            # The program's own traceback, and nothing after it or before.
            assert result.stderr.startswith("Traceback (most recent call last):\n"), where
            assert result.stderr.count("Traceback") == 1, where
            assert result.stderr.splitlines()[-1].startswith(left), where
        assert result.stdout.split() == ["served"] * 2 * (case == "serving"), where
    print(f"{case}: {max(seconds for seconds, _ in outcomes):.2f} s at most")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FACES)
def test_L16_a_daemon_thread_is_met_at_any_point(name: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda i: end(name, "daemon", OPTIONS[[*OPTIONS][i % 3]]), range(150)))
    assert {(result.returncode, result.stderr) for _, result in outcomes} == {(0, "")}
    print(f"{max(seconds for seconds, _ in outcomes):.2f} s at most")


def test_L16_a_stuck_step_delays_the_exit_by_two_seconds_at_most() -> None:
    script = """
        import time
        from windlass import EngineConfig, MLCEngine
        engine = MLCEngine(engine_config=EngineConfig(verbose=False))
        executor = engine._core._runtime.executor
        def stuck(batch):
            time.sleep(60)
        executor.run = stuck
        stream = engine.completions.create(prompt="x", stream=True)
        print(time.monotonic())
    """
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=LIMIT
    )
    ended = time.monotonic()
    assert (result.returncode, result.stderr) == (0, "")
    took = ended - float(result.stdout)
    print(f"{took:.2f} s")
    assert took < 2 + 4 * PROMPT


# L17: failures


def test_L17_a_failing_step_tells_everybody_and_frees_everything(face: Face) -> None:
    threads = num_threads()
    engine = face.build(slow=True, max_num_sequence=2)
    readers = [face.stream(engine, LONG, **ENDLESS) for _ in range(3)]
    readers[0].next()
    waiting = [Started(read, reader) for reader in readers] + [Started(face.create, engine, LONG, **ENDLESS)]
    assert wait_for(lambda: core_of(engine).num_open == 4)
    failed_at: list[float] = []

    def fail(original: Callable[[Batch], Any], batch: Batch) -> Any:  # noqa: ARG001
        failed_at.append(time.monotonic())
        raise OSError(5, "injected")

    replace_run(engine, fail)
    for one in waiting:
        assert one.ended()
        assert isinstance(one.error, EngineFailedError)
        assert isinstance(one.error.__cause__, OSError)
        assert "injected" in str(one.error)
    told = max(one.ended_at for one in waiting) - failed_at[0]
    print(f"the last waiter knew after {1000 * told:.1f} ms")
    assert told < PROMPT
    assert engine.state is EngineState.FAILED
    for _ in range(2):
        with pytest.raises(EngineFailedError, match="injected"):
            face.create(engine)
    with pytest.raises(EngineFailedError):
        face.call(engine, "reload")
    with pytest.raises(EngineFailedError):
        face.call(engine, "reset")
    face.call(engine, "abort", "anything")
    engine.terminate()
    with pytest.raises(EngineTerminatedError) as caught:
        face.create(engine)
    assert isinstance(caught.value.__cause__, OSError)
    assert len(failed_at) == 1
    assert wait_for(lambda: num_threads() <= threads)


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(1), KeyboardInterrupt(), RecursionError()], ids=repr)
def test_L17_whatever_is_raised_counts_as_a_failure(face: Face, error: BaseException) -> None:
    engine = face.build()

    def fail(original: Callable[[Batch], Any], batch: Batch) -> Any:  # noqa: ARG001
        raise error

    replace_run(engine, fail)
    with pytest.raises(EngineFailedError) as caught:
        face.create(engine)
    assert caught.value.__cause__ is error
    error.__traceback__ = None


@pytest.mark.parametrize("thread", ["engine", "stream-back"])
@pytest.mark.parametrize("most", [40, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_L17_a_fault_at_any_line_of_the_loops_tells_everybody(
    face: Face, monkeypatch: pytest.MonkeyPatch, thread: str, most: int
) -> None:
    """An exception before the first run of each line of the two loops: every call ends, and terminate frees all."""
    name = {"engine": "run_background_loop", "stream-back": "run_background_stream_back_loop"}[thread]
    original = getattr(EngineCore, name)
    files = (os.path.dirname(loop_module.__file__), str(Path(loop_module.__file__).parent.parent / "serve"))  # noqa: PTH120
    lines: list[Any] = []

    def collect(core: EngineCore) -> None:
        lines.extend(lines_of(lambda: original(core), files))

    def use(where: object = None) -> list[Started]:
        engine = face.build(tracked=False, max_num_sequence=2, max_total_sequence_length=256)
        engines.append(engine)
        calls = [Started(face.answer, engine, n=1 + i % 2, stop="Paris") for i in range(3)]
        calls.append(Started(lambda: read(face.stream(engine, LONG, max_tokens=40))))
        for call in calls:
            assert call.ended(5.0), f"a call hangs: {where}"
        calls.append(Started(face.answer, engine))
        assert calls[-1].ended(5.0), f"a later call hangs: {where}"
        return calls

    engines: list[Any] = []
    threads = num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(EngineCore, name, collect)
        for call in use():
            assert call.error is None
        engines.pop().terminate()
    # All but the lines of the function itself, whose handlers are what is tested, and of what ends the other loop.
    outermost = set()
    for function in (original, StreamBack.stop):
        source, first = inspect.getsourcelines(function)
        outermost |= {(function.__code__.co_filename, first + i) for i in range(len(source))}
    lines = [line for line in lines if line not in outermost]
    assert len(lines) > 30
    failures = 0
    for line in sample(lines, most):
        interrupter = Interrupter(line, _fault, files)

        def run(core: EngineCore, interrupter: Interrupter = interrupter) -> None:
            with interrupter:
                original(core)

        with monkeypatch.context() as patch:
            patch.setattr(EngineCore, name, run)
            # What cannot be told apart from the end of the thread itself, nobody handles.
            patch.setattr(threading, "excepthook", lambda _: None)
            errors = {type(call.error) for call in use(line) if call.error is not None}
            engine = engines.pop()
            failures += bool(errors)
            engine.terminate()
        assert {error.__name__ for error in errors} <= {"EngineFailedError", "RequestAbortedError"}, (line, errors)
        assert engine.state is EngineState.TERMINATED, line
        assert wait_for(lambda: num_threads() <= threads), line
    assert failures > 5


class InjectedError(Exception):
    """Injected."""


def _fault() -> None:
    raise InjectedError("injected")


# L18: fork

FORK = """
import os, sys, time
from windlass import EngineConfig, EngineForkedError, MLCEngine
message = [{"role": "user", "content": "What is the capital of France?"}]
config = EngineConfig(verbose=False, num_threads=2)
def answer(engine):
    return engine.chat.completions.create(messages=message, temperature=0).choices[0].message.content
engine = MLCEngine(engine_config=config)
assert answer(engine) == "The capital of France is Paris."
stream = engine.chat.completions.create(messages=message, stream=True, temperature=0)
first = next(stream)
sys.stdout.flush()
pid = os.fork()
if pid == 0:
    started = time.monotonic()
    for call in (lambda: answer(engine), lambda: next(stream), engine.unload, engine.reload, engine.reset):
        try:
            call()
        except EngineForkedError:
            pass
        else:
            print("no error", call)
    engine.abort("x")
    engine.terminate()
    engine.terminate(drain=True)
    assert time.monotonic() - started < 1.0
    with MLCEngine(engine_config=config) as own:
        assert answer(own) == "The capital of France is Paris."
    left = MLCEngine(engine_config=config)
    answer(left)
    print("child", flush=True)
    sys.exit(5)
started = time.monotonic()
_, status = os.waitpid(pid, 0)
print("child exited", os.waitstatus_to_exitcode(status))
assert "".join(c.choices[0].delta.content or "" for c in [first, *stream]) == "The capital of France is Paris."
assert answer(engine) == "The capital of France is Paris."
engine.terminate()
print("parent")
"""


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_L18_a_forked_child_refuses_at_once_and_exits_clean(options: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, *options, "-W", "ignore::DeprecationWarning", "-c", FORK],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["child", "child exited 5", "parent"]
    assert result.returncode == 0


ASYNC_FORK = """
import asyncio, os, sys
from windlass import AsyncMLCEngine, EngineConfig, EngineForkedError
message = [{"role": "user", "content": "What is the capital of France?"}]
engine = AsyncMLCEngine(engine_config=EngineConfig(verbose=False))
async def answer():
    return (await engine.chat.completions.create(messages=message, temperature=0)).choices[0].message.content
assert asyncio.run(answer()) == "The capital of France is Paris."
pid = os.fork()
if pid == 0:
    for call in (answer, engine.unload, engine.reload, engine.reset):
        try:
            asyncio.run(call())
        except EngineForkedError:
            pass
        else:
            print("no error", call)
    asyncio.run(engine.abort("x"))
    asyncio.run(engine.aterminate())
    engine.terminate()
    sys.exit(5)
print("child exited", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
assert asyncio.run(answer()) == "The capital of France is Paris."
engine.terminate()
"""


def test_L18_the_async_engine_too() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", ASYNC_FORK],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert (result.stderr, result.stdout, result.returncode) == ("", "child exited 5\n", 0)


PROCESSES = """
import multiprocessing, sys
from windlass import EngineConfig, MLCEngine
message = [{"role": "user", "content": "What is the capital of France?"}]
def answer(_):
    with MLCEngine(engine_config=EngineConfig(verbose=False, num_threads=1)) as engine:
        return engine.chat.completions.create(messages=message, temperature=0).choices[0].message.content
if __name__ == "__main__":
    engine = MLCEngine(engine_config=EngineConfig(verbose=False))
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        answers = pool.map(answer, range(3))
    assert set(answers) == {answer(0)} == {"The capital of France is Paris."}, answers
    engine.terminate()
    print("ok")
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_L18_multiprocessing_works(method: str, tmp_path: Path) -> None:
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(script), method],
        capture_output=True,
        text=True,
        timeout=3 * LIMIT,
    )
    assert (result.stdout, result.stderr, result.returncode) == ("ok\n", "", 0)


# L19: nothing is installed

HOOKS = """
import atexit, os, signal, sys, threading
registered = []
atexit.register, original = lambda *a, **k: registered.append(a[0]) or original(*a, **k), atexit.register
forks = []
os.register_at_fork, original_fork = lambda **k: forks.append(k), os.register_at_fork
def hooks():
    return (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook, sys.gettrace(), sys.getprofile(),
            [signal.getsignal(s) for s in signal.valid_signals() if s not in (signal.SIGKILL, signal.SIGSTOP)])
before = hooks()
from windlass import MLCEngine, EngineConfig
engine = MLCEngine(engine_config=EngineConfig(verbose=False))
engine.completions.create(prompt="x", max_tokens=2)
ours = [one for one in registered if "windlass" in (getattr(one, "__module__", None) or "")]
assert len(ours) == 1, ours
assert len([one for one in forks if any("windlass" in f.__module__ for f in one.values())]) <= 1
assert hooks() == before
mine = [thread for thread in threading.enumerate() if thread.name.startswith("windlass")]
assert len(mine) == 3 and all(thread.daemon for thread in mine), mine
engine.terminate()
assert hooks() == before
print("ok")
"""


def test_L19_no_handlers_no_hooks_but_one_and_only_daemon_threads() -> None:
    result = subprocess.run([sys.executable, "-c", HOOKS], capture_output=True, text=True, timeout=LIMIT)
    assert (result.stdout, result.stderr, result.returncode) == ("ok\n", "", 0)


def test_L19_threads_of_an_engine_are_daemons(face: Face, engine: MLCEngineBase) -> None:
    face.answer(engine, QUESTION)
    assert len(engine._own_threads()) == 3
    assert all(thread.daemon for thread in engine._own_threads())
