"""L1, L17: whatever fails, the k-th time that it is done, leaves a working engine, or a clear error and nothing else.

The faults are injected where the operating system can refuse: memory, threads, files; and where code of ours may throw.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any

import pytest

from support.baseline import Baseline
from support.faults import NATIVE_KINDS, PYTHON_KINDS, fault, native_fault, require_native
from support.lifecycle import (
    ANSWER,
    DRAFT_MODEL,
    LIMIT,
    LONG,
    Face,
    Started,
)
from windlass import LoadError
from windlass.engine.state import EngineState
from windlass.errors import EngineFailedError, EngineTerminatedError, WindlassError

require_native()

CONSTRUCTION = tuple(kind for kind in NATIVE_KINDS if kind not in ("operation", "piece"))


pytestmark = pytest.mark.usefixtures("without_collection")


@pytest.mark.parametrize("settings", [{}, DRAFT_MODEL], ids=["", "draft model"])
@pytest.mark.parametrize("kind", [*CONSTRUCTION, *PYTHON_KINDS])
def test_L01_a_construction_that_fails_anywhere_leaves_nothing(face: Face, kind: str, settings: dict[str, Any]) -> None:
    face.build(num_threads=3, tracked=False, **settings).terminate()
    baseline = Baseline()
    failed = 0
    for turn in itertools.count(1):
        what = f"{kind} {turn}"
        engine, message = None, None
        with fault(kind, turn) as fired:
            try:
                engine = face.build(num_threads=3, tracked=False, **settings)
            except (WindlassError, MemoryError, OSError, RuntimeError) as error:
                message = str(error)
            happened = fired()
        if engine is None:
            assert happened, what
            assert message, what
            failed += 1
        else:
            # Where the engine can do without what failed, it works.
            assert engine.state is EngineState.READY, what
            engine.terminate()
        baseline.check(what)
        if not happened:
            break
    print(f"{failed} of {turn} constructions failed")
    assert failed > 0
    baseline.check_memory()
    assert face.answer(face.build()) == ANSWER


@pytest.mark.parametrize("kind", ["mapping", "allocation"])
def test_L01_too_little_memory_is_a_load_error(face: Face, kind: str) -> None:
    with native_fault(kind, 1), pytest.raises((LoadError, MemoryError)):
        face.build(tracked=False)


@pytest.mark.parametrize("kind", ["operation", "piece", "allocation"])
@pytest.mark.parametrize("turn", [1, 3, 500])
def test_L17_a_step_that_fails_tells_every_waiter_and_terminate_frees_everything(
    face: Face, kind: str, turn: int
) -> None:
    baseline = Baseline()
    engine = face.build(tracked=False, slow=True, max_num_sequence=2)
    endless: dict[str, Any] = {"max_tokens": 900, "debug_config": {"ignore_eos": True}}
    reader = face.stream(engine, LONG, **endless)
    assert reader.next() is not None
    waiting = [Started(face.create, engine, LONG, **endless) for _ in range(3)]
    with native_fault(kind, turn) as fired:
        with pytest.raises(EngineFailedError) as caught:
            while reader.next() is not None:
                pass
        assert isinstance(caught.value.__cause__, MemoryError if kind == "allocation" else RuntimeError)
        for one in waiting:
            with pytest.raises(EngineFailedError):
                one.result()
        assert fired()
    assert engine.state is EngineState.FAILED
    with pytest.raises(EngineFailedError):
        face.create(engine)
    face.terminate(engine)
    with pytest.raises(EngineTerminatedError):
        face.create(engine)
    baseline.check(kind)


def test_L17_every_first_operation_may_fail(face: Face) -> None:
    """The k-th operation of the first steps, for k = 1, 2, ... through a whole step and into the next."""
    baseline = Baseline()
    for turn in range(1, 61):
        engine = face.build(tracked=False)
        with native_fault("operation", turn) as fired:
            answer = Started(face.answer, engine)
            assert answer.ended(LIMIT), f"operation {turn}"
            assert fired()
            assert isinstance(answer.error, EngineFailedError)
        engine.terminate()
        baseline.check(f"operation {turn}")
    baseline.check_memory()


LEAKS = """
import sys
from support.lifecycle import FACES
from windlass.native import _core
_core.faults.report_leaks()
how = sys.argv[2]
face = FACES[sys.argv[1]]()
engine = face.build(tracked=False)
print(face.answer(engine, temperature=0.7, seed=1, presence_penalty=0.5) != "")
if how == "fail":
    _core.faults.arm("operation", 3)
    try:
        face.answer(engine)
    except Exception as error:
        print(type(error).__name__)
if how == "leak":
    import ctypes
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_core.RowSampler(active_vocab_size=1, kernels="")))
engine.terminate()
face.finish()
"""


@pytest.mark.parametrize(("how", "said"), [("end", "True\n"), ("fail", "True\nEngineFailedError\n")])
def test_L12_no_native_object_is_left_at_the_end_of_the_interpreter(face: Face, how: str, said: str) -> None:
    done = _run_leaks(face.name, how)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_native_objects_that_are_left_are_reported() -> None:
    assert "leaked instance" in _run_leaks("sync", "leak").stderr


def _run_leaks(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LEAKS, *arguments]
    return subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True, check=False)
