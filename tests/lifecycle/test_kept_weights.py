"""Weights kept from one load to the next: the same answers, everything given back, and no file is trusted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.faults import PYTHON_KINDS, fault, require_native
from support.lifecycle import ANSWER, Face, ask, core_of, mapped_files, num_mappings, resident_bytes, wait_for
from windlass import EngineConfig, LoadError, MLCEngine
from windlass.demo import model_directory
from windlass.errors import WindlassError
from windlass.serve import kept_weights
from windlass.serve.build import load_model
from windlass.serve.engine_base import MLCEngineBase

SETTINGS: dict[str, Any] = {"quantization": "q4f16_1"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test's own, for models of any size."""
    monkeypatch.setenv("WINDLASS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_weights, "LEAST_BYTES", 0)
    return tmp_path / "cache"


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.weights")) if cache.is_dir() else []


def is_mapped(engine: MLCEngineBase) -> bool:
    runtime = core_of(engine)._runtime
    assert runtime is not None
    return runtime.executor.weights_mapped  # type: ignore[attr-defined, no-any-return]


def answers(face: Face, **settings: Any) -> tuple[bool, str]:
    """Whether a new engine mapped its weights, and what it said."""
    engine = face.build(**{**SETTINGS, **settings})
    result = is_mapped(engine), face.answer(engine)
    engine.terminate()
    return result


def test_the_second_engine_maps_what_the_first_one_packed(face: Face, cache: Path) -> None:
    first, kept = answers(face), files(cache)
    second = answers(face)
    assert (first[0], second[0]) == (False, True)
    assert first[1] == second[1] != ""
    assert len(kept) == 1
    assert files(cache) == kept


def steps_of_a_load() -> list[tuple[str, int, int]]:
    told: list[tuple[str, int, int]] = []
    config = EngineConfig(quantization="q4f16_1")
    loaded = load_model("demo", model_directory(), config, progress=lambda *step: told.append(step))
    loaded.executor.close()
    return [step for step in told if step[2]]


def test_a_load_tells_how_far_it_is() -> None:
    first = steps_of_a_load()
    phases = ["packing weights", "keeping packed weights"]
    assert list(dict.fromkeys(phase for phase, _, _ in first)) == phases
    for phase in phases:
        steps = [(done, total) for name, done, total in first if name == phase]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]
    assert steps_of_a_load() == []


def test_logprobs_are_the_same_bits() -> None:
    results = []
    for _ in range(2):
        with MLCEngine(engine_config=None, quantization="q8f16_1") as engine:
            answer = ask(engine, "Tell me a story about a fox.", logprobs=True, top_logprobs=5, max_tokens=40)
            results.append((is_mapped(engine), answer.choices[0].logprobs))
    assert [mapped for mapped, _ in results] == [False, True]
    assert results[0][1] == results[1][1]


def test_L12_mapped_weights_are_given_back(face: Face, cache: Path) -> None:
    answers(face)
    answers(face)
    mappings, resident = num_mappings(), resident_bytes()
    engine = face.build(**SETTINGS)
    assert {path for path in mapped_files() if str(cache) in path} == {str(path) for path in files(cache)}
    assert face.answer(engine) != ""
    engine.terminate()
    assert not [path for path in mapped_files() if str(cache) in path]
    assert num_mappings() <= mappings + 2
    assert resident_bytes() - resident < 4 << 20


def test_an_engine_without_the_cache_leaves_it_alone(face: Face, cache: Path) -> None:
    assert answers(face, pack_cache=False)[0] is False
    assert files(cache) == []
    answers(face)
    assert answers(face, pack_cache=False)[0] is False


def test_a_limit_of_0_turns_the_cache_off(face: Face, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDLASS_CACHE_LIMIT", "0")
    assert [answers(face)[0] for _ in range(2)] == [False, False]
    assert not cache.exists()
    monkeypatch.setenv("WINDLASS_CACHE_LIMIT", "many")
    with pytest.raises(ValueError, match="WINDLASS_CACHE_LIMIT must be a number of GiB"):
        face.build(**SETTINGS, tracked=False)


def test_small_models_are_not_kept(face: Face, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("WINDLASS_CACHE_DIR", str(cache))
    assert [answers(face)[0] for _ in range(2)] == [False, False]
    assert files(cache) == []


@pytest.mark.parametrize("how", ["truncated", "emptied", "header", "other"])
def test_a_file_that_is_not_right_is_replaced(face: Face, cache: Path, how: str) -> None:
    _, said = answers(face)
    (kept,) = files(cache)
    whole = kept.read_bytes()
    if how == "truncated":
        kept.write_bytes(whole[:-1])
    elif how == "emptied":
        kept.write_bytes(b"")
    elif how == "header":
        kept.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    else:
        kept.write_bytes(b"\x7fELF" + bytes(len(whole) - 4))
    assert answers(face) == (False, said)
    assert kept.read_bytes() == whole
    assert answers(face) == (True, said)


def test_other_files_are_another_model(face: Face, tmp_path: Path) -> None:
    """The place does not matter; sizes, times and contents do."""
    shutil.copytree(model_directory(), tmp_path / "a", copy_function=shutil.copy2)
    shutil.copytree(model_directory(), tmp_path / "b", copy_function=shutil.copy2)
    answers(face, model=str(tmp_path / "a"))
    assert answers(face, model=str(tmp_path / "b"))[0] is True
    assert answers(face, model=str(tmp_path / "b"), quantization="q8f16_1")[0] is False
    stored = tmp_path / "b" / "model.safetensors"
    times = stored.stat()
    os.utime(stored, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert answers(face, model=str(tmp_path / "b"))[0] is False
    changed = bytearray(stored.read_bytes())
    changed[len(changed) // 2 :] = bytes(len(changed) - len(changed) // 2)
    stored.write_bytes(changed)
    os.utime(stored, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert answers(face, model=str(tmp_path / "b"))[0] is False


def test_L01_a_cache_that_cannot_be_used_is_done_without(face: Face, cache: Path) -> None:
    cache.write_bytes(b"a file where the directory should be")
    assert [answers(face)[0] for _ in range(2)] == [False, False]


@pytest.mark.parametrize("kind", ["mapping", *(kind for kind in PYTHON_KINDS if kind != "mmap")])
def test_L01_a_load_from_the_cache_that_fails_anywhere_leaves_nothing(face: Face, kind: str) -> None:
    require_native()
    answers(face)
    files_before = mapped_files()
    for turn in range(1, 200):
        engine = None
        with fault(kind, turn) as fired:
            try:
                engine = face.build(**SETTINGS, tracked=False)
            except (WindlassError, MemoryError, OSError, RuntimeError):
                assert fired()
            happened = fired()
        if engine is not None:
            engine.terminate()
        assert wait_for(lambda: mapped_files() <= files_before), turn
        if not happened:
            break
    assert turn > 1
    assert answers(face)[0] is True


def test_L01_an_interrupt_while_weights_are_kept_leaves_nothing(
    face: Face, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.fsync

    def interrupted(descriptor: int) -> None:
        original(descriptor)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        face.build(**SETTINGS, tracked=False)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(os, "fsync", original)
    assert [answers(face)[0] for _ in range(2)] == [False, True]


def test_reload_and_unload_of_mapped_weights(sync_engine: MLCEngine, cache: Path) -> None:
    answered = ask(sync_engine).choices[0].message.content
    assert answered == ANSWER
    for _ in range(3):
        sync_engine.unload()
        assert not [path for path in mapped_files() if str(cache) in path]
        sync_engine.reload()
        assert is_mapped(sync_engine)
        assert ask(sync_engine).choices[0].message.content == ANSWER


def test_a_source_that_vanishes_is_still_a_load_error(face: Face, tmp_path: Path) -> None:
    shutil.copytree(model_directory(), tmp_path / "model")
    answers(face, model=str(tmp_path / "model"))
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(LoadError):
        face.build(**SETTINGS, model=str(tmp_path / "model"), tracked=False)
