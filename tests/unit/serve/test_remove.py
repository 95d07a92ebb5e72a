"""Removing models: all that is theirs, and nothing else."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.model_caches import add_to_hub_cache, content, tree
from windlass import EngineConfig, MLCEngine
from windlass.demo import model_directory
from windlass.errors import LoadError
from windlass.serve import kept_weights
from windlass.serve.listing import list_models
from windlass.serve.remove import plan_removal

HF = {"config.json": b"{}", "model.safetensors": b"12345678", "README.md": b"words"}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Caches of their own, for models and for what loads make."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MLC_LLM_HOME", str(tmp_path / "mlc"))
    monkeypatch.setenv("WINDLASS_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_a_repository_goes_as_a_whole(places: Path) -> None:
    add_to_hub_cache(places / "hub", "org/name", HF)
    add_to_hub_cache(places / "hub", "org/name", {**HF, "config.json": b"{ }"}, commit="b" * 40, revision="v1")
    add_to_hub_cache(places / "hub", "org/other", HF)
    others = tree(places / "hub/models--org--other")
    removal = plan_removal("org/name")
    assert removal.directory == places / "hub/models--org--name"
    assert removal.num_bytes == sum(map(len, HF.values())) + 3 + 80  # the other config.json, and two references
    assert removal.users() == []
    assert removal.run() == removal.num_bytes
    assert list((places / "hub").iterdir()) == [places / "hub/models--org--other"]
    assert tree(places / "hub/models--org--other") == others


def test_one_revision(places: Path) -> None:
    main = add_to_hub_cache(places / "hub", "org/name", HF)
    add_to_hub_cache(places / "hub", "org/name", {**HF, "config.json": b"{ }"}, commit="b" * 40, revision="v1")
    before = content(main)
    assert plan_removal("org/name@v1").run() > 0
    assert content(main) == before
    storage = main.parents[1]
    assert tree(storage) == {
        "refs/main",
        *(f"snapshots/{main.name}/{name}" for name in HF),
        *(f"blobs/{(main / name).resolve().name}" for name in HF),
    }
    assert not (storage / "snapshots" / ("b" * 40)).exists()


def test_one_gguf_model_of_several(places: Path) -> None:
    files = {
        "a-Q4_0.gguf": b"GGUF4",
        "a-Q8_0-00001-of-00002.gguf": b"GGUF8",
        "a-Q8_0-00002-of-00002.gguf": b"GGUF88",
        "README.md": b"",
    }
    snapshot = add_to_hub_cache(places / "hub", "org/ggufs", files)
    removal = plan_removal("org/ggufs:Q8_0")
    assert removal.directory is None
    removal.run()
    assert content(snapshot) == {"a-Q4_0.gguf": b"GGUF4", "README.md": b""}
    assert len(list((snapshot.parents[1] / "blobs").iterdir())) == 2
    plan_removal("org/ggufs:a-Q4_0.gguf").run()  # the last one: nothing needs the rest
    assert list((places / "hub").iterdir()) == []


def test_an_interrupted_download(places: Path) -> None:
    blobs = places / "hub/models--org--big/blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.incomplete").write_bytes(b"1234")
    assert plan_removal("org/big").run() == 4
    assert list((places / "hub").iterdir()) == []


def test_an_mlc_directory(places: Path) -> None:
    root = places / "mlc/model_weights/hf/mlc-ai"
    for name in ("X-MLC", "Y-MLC"):
        (root / name).mkdir(parents=True)
        (root / name / "mlc-chat-config.json").write_text("{}")
    plan_removal("mlc-ai/X-MLC").run()
    assert list(root.iterdir()) == [root / "Y-MLC"]


def test_nothing_outside_of_the_caches(places: Path) -> None:
    elsewhere = places / "elsewhere"
    elsewhere.mkdir()
    for name, data in HF.items():
        (elsewhere / name).write_bytes(data)
    (places / "work/mine").symlink_to(elsewhere)
    linked = places / "linked"
    shutil.copytree(elsewhere, linked)
    snapshot = add_to_hub_cache(places / "hub", "org/link", HF)
    snapshot.with_name("b" * 40).symlink_to(linked)
    (places / "hub/models--org--other").symlink_to(add_to_hub_cache(places / "far", "org/other", HF).parents[1])
    (places / "mlc/model_weights/hf/org").mkdir(parents=True)
    (places / "mlc/model_weights/hf/org/mlc").symlink_to(elsewhere)
    (elsewhere / "mlc-chat-config.json").write_text("{}")
    before = [tree(directory) for directory in (elsewhere, linked, places / "far")]
    for name in (str(elsewhere), "mine", "org/other", "org/mlc", f"org/link@{'b' * 40}"):
        with pytest.raises(
            LoadError, match=r"in none of their caches|is a link out of the cache|is outside of the cache"
        ):
            plan_removal(name)
    plan_removal("org/link").run()
    assert [tree(directory) for directory in (elsewhere, linked, places / "far")] == before
    with pytest.raises(LoadError, match="there is no such model on this machine"):
        plan_removal("org/nothing")


def test_a_model_that_is_mapped_is_in_use(places: Path) -> None:
    snapshot = add_to_hub_cache(places / "hub", "org/name", HF)
    with (snapshot / "model.safetensors").open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    assert plan_removal("org/name").users() == [os.getpid()]
    mapped.close()
    assert plan_removal("org/name").users() == []


def test_packed_weights_go_too(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_weights, "LEAST_BYTES", 0)
    add_to_hub_cache(places / "hub", "org/tiny", content(model_directory()))
    add_to_hub_cache(places / "hub", "org/other", {**content(model_directory()), "more": b""})
    config = EngineConfig(max_single_sequence_length=32, verbose=False)
    assert [listed.last_used for listed in list_models()] == [None, None]
    for quantization in (None, "q4f16_1"):
        MLCEngine("org/tiny", engine_config=config, quantization=quantization).terminate()
    assert sorted(file.suffix for file in (places / "cache").iterdir()) == [".used", ".weights", ".weights"]
    assert [listed.last_used is None for listed in list_models()] == [True, False]
    engine = MLCEngine("org/tiny", engine_config=config)
    removal = plan_removal("org/tiny")
    assert removal.users() == [os.getpid()]
    engine.terminate()
    assert removal.users() == []
    assert removal.run() > removal.num_bytes
    assert list((places / "cache").iterdir()) == []
    assert [listed.model.name for listed in list_models()] == ["org/other"]
