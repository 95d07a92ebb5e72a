"""L1: the constructor returns an engine that is ready, or raises and leaves nothing; whatever stopped it."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.baseline import Baseline
from support.interrupting import Interrupter, interrupt, lines_of, sample
from support.lifecycle import (
    ANSWER,
    LIMIT,
    MIDDLE,
    QUESTION,
    Face,
    resident_bytes,
    wait_for,
    write_shape,
)
from windlass import AsyncMLCEngine, EngineConfig, EngineTerminatedError, LoadError, MLCEngine
from windlass.demo import model_directory
from windlass.engine.loop import EngineCore
from windlass.engine.state import EngineState
from windlass.native.executor import NativeExecutor
from windlass.serve import alive, build, engine_base, opened, preparer, progress
from windlass.serve.engine_base import MLCEngineBase

pytestmark = pytest.mark.usefixtures("without_collection")


def test_L01_a_new_engine_is_ready(face: Face) -> None:
    engine = face.build()
    assert engine.state is EngineState.READY
    assert face.answer(engine) == ANSWER


class Terminal(io.StringIO):
    """What is written to a terminal, or to a pipe."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def test_L02_a_long_load_tells_a_terminal_its_phases(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """And wipes its line; a short one, or one that writes to a pipe, says nothing."""
    for terminal, quiet in ((True, 0.0), (True, 1000.0), (False, 0.0)):
        screen = Terminal(terminal=terminal)
        monkeypatch.setattr(progress, "QUIET_SECONDS", quiet)
        monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
        monkeypatch.setattr(sys, "stderr", screen)
        engine = face.kind()
        monkeypatch.undo()
        engine.terminate()
        said = screen.getvalue()
        if terminal and not quiet:
            phases = ["reading the configuration", "loading the tokenizer", "packing weights"]
            assert [said.index(phase) for phase in phases] == sorted(said.index(phase) for phase in phases)
            assert "packing weights 100 %" in said
            assert said.endswith("\r\x1b[K")
        else:
            assert said == ""


STEPS: list[tuple[Any, str]] = [
    (engine_base, "resolve_model"),
    (engine_base, "load_model"),
    (opened, "open_model_directory"),
    (opened, "define_model"),
    (build.TextModel, "load"),
    (build, "settle_sizes"),
    (build, "available_bytes"),
    (build, "load_weights"),
    (build, "NativeExecutor"),
    (build, "_completed"),
    (build, "note_use"),
    (build.LoadedModel, "runtime"),
    (NativeExecutor, "_pack"),
    (EngineCore, "init_threaded_engine"),
    (engine_base, "stop_at_exit"),
    (engine_base.alive, "add"),
    (engine_base, "EngineCore"),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "error",
    [LoadError("x", "injected"), MemoryError(), OSError(5, "injected"), KeyboardInterrupt(), SystemExit(3)],
    ids=lambda error: type(error).__name__,
)
def test_L01_a_step_that_fails_leaves_nothing(
    face: Face, monkeypatch: pytest.MonkeyPatch, error: BaseException, when: str
) -> None:
    baseline = Baseline()
    for owner, name in STEPS:
        original = getattr(owner, name)

        def failing(*arguments: Any, original: Callable[..., Any] = original, **named: Any) -> Any:
            if when == "after":
                # What it made is dropped at once.
                original(*arguments, **named)
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, staticmethod(failing) if name == "load" else failing)
            if name == "load_model" and when == "after":
                continue  # dropping a loaded model is not what an engine does
            with pytest.raises(
                type(error) if not isinstance(error, MemoryError) else (MemoryError, LoadError)
            ) as caught:
                face.build(tracked=False, model=str(model_directory()))
        # The error and its traceback are still there.
        assert caught.value is not None
        baseline.check()
    error.__traceback__ = None


@pytest.mark.parametrize("most", [60, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_L01_interrupts_at_every_line_leave_nothing(face: Face, most: int) -> None:
    """KeyboardInterrupt before the first run of lines of a construction, at most so many of them."""

    def construct() -> None:
        built.append(face.build(tracked=False))

    built: list[MLCEngineBase] = []
    construct()
    lines = lines_of(construct)
    while built:
        built.pop().terminate()
    baseline = Baseline()
    chosen = sample(lines, most)
    for line in chosen:
        interrupter = Interrupter(line, interrupt)
        try:
            with interrupter:
                construct()
        except (KeyboardInterrupt, RuntimeError) as error:
            # Interrupted at its worst, threading's own code raises RuntimeError: release unlocked lock.
            _check(baseline, line, error, built)
        else:
            # The line is in a finalizer, whose errors Python drops, or runs on another way through this time.
            built.pop().terminate()
    print(f"interrupted at {len(chosen)} of {len(lines)} lines")


def _check(baseline: Baseline, line: tuple[str, int], error: BaseException, built: list[MLCEngineBase]) -> None:
    assert not built, line
    assert KeyboardInterrupt in {type(error), type(error.__context__)}, line
    try:
        baseline.check()
    except AssertionError:
        traceback.print_exception(error)
        print(f"interrupted at {line}")
        raise


def test_L01_a_thread_that_cannot_start_leaves_nothing(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    original = threading.Thread.start
    for name in ("windlass-engine", "windlass-stream-back", "windlass-prepare"):

        def failing_start(self: threading.Thread, name: str = name) -> None:
            if self.name == name:
                raise RuntimeError("can't start new thread")
            original(self)

        baseline = Baseline()
        monkeypatch.setattr(threading.Thread, "start", failing_start)
        with pytest.raises(RuntimeError, match="can't start"):
            face.build(tracked=False)
        monkeypatch.undo()
        baseline.check()


BROKEN: dict[str, Callable[[Path], None]] = {
    "no config": lambda path: (path / "config.json").unlink(),
    "config is no JSON": lambda path: _write(path / "config.json", b'{"model_type": '),
    "config is random bytes": lambda path: _write(path / "config.json", bytes(range(256)) * 20),
    "no weights": lambda path: [file.unlink() for file in path.glob("*.safetensors")][:0] or None,
    "weights are random bytes": lambda path: _write(_weights(path), bytes(range(256)) * 64),
    "weights are cut": lambda path: _write(_weights(path), _weights(path).read_bytes()[:100_000]),
    "weights are empty": lambda path: _write(_weights(path), b""),
    "tokenizer is no JSON": lambda path: _write(path / "tokenizer.json", b"[1, 2"),
    "tokenizer is random bytes": lambda path: _write(path / "tokenizer.json", bytes(range(256)) * 20),
    "another architecture": lambda path: _write(
        path / "config.json", json.dumps({**json.loads((path / "config.json").read_text()), "model_type": "x"}).encode()
    ),
    "other sizes": lambda path: _write(
        path / "config.json",
        json.dumps({**json.loads((path / "config.json").read_text()), "hidden_size": 256}).encode(),
    ),
}


def _weights(path: Path) -> Path:
    return next(iter(path.glob("*.safetensors")))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize("what", BROKEN)
def test_L01_a_broken_model_leaves_nothing(face: Face, tmp_path: Path, what: str) -> None:
    path = tmp_path / "model"
    shutil.copytree(model_directory(), path)
    BROKEN[what](path)
    baseline = Baseline()
    with pytest.raises(LoadError) as caught:
        face.build(tracked=False, model=str(path))
    assert str(path) in str(caught.value)
    baseline.check()


def test_L01_memory_is_back_before_the_error_leaves(
    face: Face, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_shape(tmp_path, **MIDDLE)
    face.build(model=model, load_format="dummy", max_total_sequence_length=1024).terminate()
    before = resident_bytes()
    seen: list[int] = []

    def failing(*_: Any) -> int:
        seen.append(resident_bytes())
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_completed", failing)
    with pytest.raises(KeyboardInterrupt) as caught:
        face.build(tracked=False, model=model, load_format="dummy", max_total_sequence_length=1024)
    assert seen[0] - before > 80 << 20
    assert resident_bytes() - before < 8 << 20
    assert caught.value.__traceback__ is not None


def test_L01_the_process_can_exit_after_a_failed_construction() -> None:
    script = (
        "import windlass\ntry:\n    windlass.MLCEngine('/nowhere')\nexcept windlass.LoadError:\n    print('refused')"
    )
    result = subprocess.run([sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True, timeout=LIMIT)
    assert (result.stdout, result.stderr, result.returncode) == ("refused\n", "", 0)


def test_L01_arguments_are_checked_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_base, "load_model", lambda *_, **__: pytest.fail("loaded before the check"))
    with pytest.raises(ValueError, match="'cuda' is not supported"):
        MLCEngine(device="cuda")
    with pytest.raises(ValueError, match="mode"):
        MLCEngine(mode="fast")
    with pytest.raises(ValueError, match="device"):
        MLCEngine(device="tpu:0")


def test_L01_a_failed_preparer_leaves_nothing(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: EngineCore) -> Any:
        raise KeyboardInterrupt

    baseline = Baseline()
    monkeypatch.setattr(EngineCore, "init_threaded_engine", failing)
    with pytest.raises(KeyboardInterrupt):
        face.build(tracked=False)
    baseline.check()
    assert preparer.threading is threading


def test_L20_too_little_memory_names_the_engines_that_hold_it(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    assert alive.hint() == ""
    engine = face.build()
    with monkeypatch.context() as patch:
        patch.setattr(build, "available_bytes", lambda: 1000)
        with pytest.raises(LoadError, match=f"{type(engine).__name__} windlass-demo: ready"):
            face.build(tracked=False)
    engine.terminate()
    with monkeypatch.context() as patch:
        patch.setattr(build, "available_bytes", lambda: 1000)
        with pytest.raises(LoadError) as caught:
            face.build(tracked=False)
        assert "ready" not in str(caught.value)
    with monkeypatch.context() as patch:
        second = face.build()
        patch.setattr(build, "NativeExecutor", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(LoadError, match=r"not enough memory.*ready"):
            face.build(tracked=False)
    assert second.state is EngineState.READY


def test_L01_a_failed_engine_config_leaves_nothing() -> None:
    baseline = Baseline()
    with pytest.raises(ValueError, match="num_threads"):
        MLCEngine(engine_config=EngineConfig(num_threads=-1))
    baseline.check()


def test_L01_a_terminate_from_elsewhere_cuts_a_construction_short(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever terminates waits until nothing is left; the constructor raises."""
    baseline = Baseline()
    begun, go_on = threading.Event(), threading.Event()
    load_weights = build.load_weights

    def slow(*arguments: Any, **named: Any) -> Any:
        begun.set()
        assert go_on.wait(LIMIT)
        return load_weights(*arguments, **named)

    monkeypatch.setattr(build, "load_weights", slow)
    engine = face.kind.__new__(face.kind)
    raised: list[BaseException] = []

    def construct() -> None:
        try:
            MLCEngineBase.__init__(engine, engine_config=EngineConfig(pack_cache=False))
        except EngineTerminatedError as error:
            raised.append(error.with_traceback(None))

    constructing = threading.Thread(target=construct)
    constructing.start()
    assert begun.wait(LIMIT)
    terminating = threading.Thread(target=engine.terminate)
    terminating.start()
    assert wait_for(lambda: engine._terminated)
    assert terminating.is_alive()
    go_on.set()
    terminating.join(LIMIT)
    constructing.join(LIMIT)
    assert raised
    baseline.check()


@pytest.mark.parametrize("when", ["before", "after"])
def test_L01_a_cancelled_load_leaves_nothing(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    baseline = Baseline()
    start_threads = AsyncMLCEngine._start_threads

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(AsyncMLCEngine.load())
        cancelled = threading.Event()

        def cancel() -> None:
            task.cancel()
            cancelled.set()

        def interfere(engine: AsyncMLCEngine, loaded: Any) -> None:
            if when == "after":
                start_threads(engine, loaded)
            loop.call_soon_threadsafe(cancel)
            assert cancelled.wait(LIMIT)
            if when == "before":
                start_threads(engine, loaded)

        monkeypatch.setattr(AsyncMLCEngine, "_start_threads", interfere)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    baseline.check()


def test_L01_an_engine_loads_beside_an_event_loop() -> None:
    async def main() -> str:
        async with await AsyncMLCEngine.load() as engine:
            answer = await engine.chat.completions.create(
                messages=[{"role": "user", "content": QUESTION}], temperature=0
            )
            return answer.choices[0].message.content or ""

    assert asyncio.run(main()) == ANSWER
    with pytest.raises(LoadError, match="/no/such"):
        asyncio.run(AsyncMLCEngine.load("/no/such"))
