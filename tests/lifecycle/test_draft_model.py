"""An engine with a draft model: the same tokens, and a lifecycle with two of everything native."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.baseline import Baseline
from support.lifecycle import (
    ANSWER,
    DRAFT_MODEL,
    ENDLESS,
    LIMIT,
    LONG,
    PROMPT,
    Face,
    Started,
    core_of,
    idle_and_whole,
    num_threads,
    wait_for,
)
from support.tiny_models import CASES, write_hf_directory
from windlass import LoadError
from windlass.config import EngineConfig
from windlass.demo import model_directory
from windlass.engine.runtime import Runtime
from windlass.engine.state import EngineState
from windlass.errors import EngineTerminatedError
from windlass.native.executor import NativeExecutor
from windlass.program.executor import Batch
from windlass.serve import build
from windlass.serve.engine_base import MLCEngineBase

REQUESTS: list[dict[str, Any]] = [
    {"text": LONG, "temperature": 0.0, "max_tokens": 60},
    {"text": LONG, "temperature": 1.1, "seed": 4, "max_tokens": 50, "n": 3},
    {"text": "What is 12 + 15?", "temperature": 0.8, "seed": 5, "repetition_penalty": 1.1, "max_tokens": 30},
    {"text": "Count from 1 to 9.", "temperature": 0.0, "stop": ["5"], "max_tokens": 40},
]


def outcome(face: Face, engine: Any, request: dict[str, Any]) -> Any:
    response = face.create(engine, **request, logprobs=True, top_logprobs=2)
    return [choice.model_dump() for choice in response.choices]


def other_model(path: Path, vocab_size: int = 640, **changes: Any) -> str:
    """A model of random weights that shares nothing with the demo model but the tokenizer."""
    case = CASES["llama3-tied"]
    config = {**case.config, "vocab_size": vocab_size, "max_position_embeddings": 1024, **changes}
    write_hf_directory(dataclasses.replace(case, config=config), path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_directory() / name, path)
    return str(path)


@pytest.mark.parametrize("length", [0, 1, 4])
@pytest.mark.parametrize("own", [True, False], ids=["its own draft", "another draft"])
def test_L26_with_a_draft_model(face: Face, tmp_path: Path, length: int, own: bool) -> None:
    plain = face.build(speculative_mode="disable")
    expected = [outcome(face, plain, request) for request in REQUESTS]
    settings = DRAFT_MODEL if own else {**DRAFT_MODEL, "additional_models": [(other_model(tmp_path), "unused.so")]}
    engine = face.build(**settings, spec_draft_length=length, max_num_sequence=6)
    for _ in range(2):
        calls = [Started(outcome, face, engine, request) for request in REQUESTS]
        assert [call.result(LIMIT) for call in calls] == expected
        assert [outcome(face, engine, request) for request in REQUESTS] == expected
    metrics = core_of(engine).metrics()
    if length:
        assert metrics.num_drafts > 0
        assert (metrics.draft_acceptance_rate > 0.9) == own
    assert idle_and_whole(engine)


def test_L26_with_a_draft_model_and_preemption(face: Face) -> None:
    plain = face.build(speculative_mode="disable")
    requests = [*REQUESTS, {"text": LONG, "temperature": 1.1, "seed": 4, "max_tokens": 120, "n": 4}]
    expected = [outcome(face, plain, request) for request in requests]
    few = {"max_num_sequence": 6, "max_total_sequence_length": 192, "max_single_sequence_length": 176}
    engine = face.build(**DRAFT_MODEL, **few, spec_draft_length=3)
    for number in range(4):
        calls = [Started(outcome, face, engine, request) for request in requests]
        reader = face.stream(engine, LONG, request_id=f"abort-{number}", max_tokens=100)
        reader.next()
        face.call(engine, "abort", f"abort-{number}")
        assert [call.result(LIMIT) for call in calls] == expected
    assert core_of(engine).metrics().num_preemptions > 0
    assert idle_and_whole(engine)


def test_L12_terminate_unload_and_reload_with_a_draft_model(face: Face) -> None:
    face.build(**DRAFT_MODEL, tracked=False).terminate()
    baseline = Baseline()
    for _ in range(3):
        engine = face.build(**DRAFT_MODEL, spec_draft_length=2, tracked=False)
        reader = face.stream(engine, LONG, **ENDLESS)
        assert reader.next() is not None
        face.call(engine, "unload")
        assert engine.state is EngineState.UNLOADED
        face.call(engine, "reload")
        assert face.answer(engine) == ANSWER
        assert core_of(engine).metrics().accepted_draft_tokens_sum > 0
        reader = face.stream(engine, LONG, **ENDLESS)
        assert reader.next() is not None
        face.terminate(engine)
        with pytest.raises(EngineTerminatedError):
            while reader.next() is not None:
                pass
        del engine, reader
        baseline.check()
    baseline.check_memory()


class DraftGate:
    """Holds the engine before step number ``last`` of its draft model."""

    def __init__(self, engine: MLCEngineBase, last: int) -> None:
        self.reached, self.open, self.steps = threading.Event(), threading.Event(), 0
        self.cancelled = threading.Event()
        runtime = core_of(engine)._runtime
        assert runtime is not None
        # Weak, so that the executor stays free of reference cycles.
        draft = runtime._executors[1]
        original, executor = type(draft).run, weakref.ref(draft)

        def run(batch: Batch) -> Any:
            self.steps += 1
            if self.steps == last + 1:
                self.reached.set()
                assert self.open.wait(LIMIT)
            return original(executor(), batch)  # type: ignore[arg-type]

        def cancel() -> None:
            Runtime.cancel(held())  # type: ignore[arg-type]
            self.cancelled.set()

        held = weakref.ref(runtime)
        draft.run = run  # type: ignore[method-assign]
        runtime.cancel = cancel  # type: ignore[method-assign]


def num_workers() -> int:
    """Threads of all executors of this process."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it ended meanwhile
            names.append((task / "comm").read_text().strip())
    return names.count("windlass-worker")


def test_both_models_work_on_the_same_threads(face: Face) -> None:
    for _ in range(2):
        engine = face.build(**DRAFT_MODEL, num_threads=3, spec_draft_length=2, tracked=False)
        assert face.answer(engine) == ANSWER
        assert core_of(engine).metrics().accepted_draft_tokens_sum > 0
        assert num_workers() == 2
        face.terminate(engine)
        assert wait_for(lambda: num_workers() == 0, PROMPT)


def test_L11_terminate_while_the_draft_model_writes(face: Face) -> None:
    """Each time before another of its steps."""
    face.build(**DRAFT_MODEL, tracked=False).terminate()
    baseline = Baseline()
    for last in range(8):
        engine = face.build(**DRAFT_MODEL, num_threads=3, spec_draft_length=3, tracked=False)
        gate = DraftGate(engine, last)
        reader = face.stream(engine, LONG, **ENDLESS)
        assert gate.reached.wait(LIMIT)
        end = Started(face.terminate, engine)
        assert gate.cancelled.wait(LIMIT)
        gate.open.set()
        end.result(LIMIT)
        with pytest.raises(EngineTerminatedError):
            while reader.next() is not None:
                pass
        assert gate.steps == last + 1, "it stops before it writes any further"
        assert wait_for(lambda: num_workers() == 0, PROMPT)
        del engine, reader, gate
        baseline.check()
    baseline.check_memory()


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "injected"), KeyboardInterrupt()])
def test_L01_a_draft_model_that_fails_to_load_leaves_nothing(
    face: Face, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    face.build(**DRAFT_MODEL, tracked=False).terminate()
    baseline = Baseline()
    built: list[int] = []

    class Failing(NativeExecutor):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            built.append(num_threads())
            if len(built) == 2:
                raise error
            super().__init__(*arguments, **named)

    monkeypatch.setattr(build, "NativeExecutor", Failing)
    with pytest.raises(LoadError if isinstance(error, MemoryError) else type(error)):
        face.build(**DRAFT_MODEL, tracked=False)
    assert built[1] == built[0] + 1, "the first one was there, with the thread for both"
    error.__traceback__ = None
    baseline.check()


def test_L01_a_draft_model_that_does_not_fit_is_named(face: Face, tmp_path: Path) -> None:
    baseline = Baseline()
    for name, settings, said in (
        ("missing", {}, "there is no such directory"),
        ("words", {"vocab_size": 300}, "vocabulary of the model, which has 640 tokens; this one has 300"),
        ("short", {"max_position_embeddings": 256}, "context of 256 tokens is shorter"),
    ):
        path = tmp_path / name
        if settings:
            other_model(path, **settings)
        with pytest.raises(LoadError, match=said) as caught:
            face.build(speculative_mode="small_draft", additional_models=[str(path)], tracked=False)
        assert str(path) in str(caught.value)
        baseline.check()
    other_model(tmp_path / "fits", max_position_embeddings=256)
    shorter = {"additional_models": [str(tmp_path / "fits")], "max_single_sequence_length": 256}
    assert face.answer(face.build(speculative_mode="small_draft", **shorter)) == ANSWER


def test_a_draft_model_is_told_by_the_complete_config(face: Face) -> None:
    config = face.build(**DRAFT_MODEL).engine_config
    assert config.draft_model == str(model_directory())
    assert EngineConfig().draft_model is None
