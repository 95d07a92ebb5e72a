"""Models on the disk: found where they lie, called what other commands call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.model_caches import add_to_hub_cache
from windlass.config import model_roots
from windlass.errors import LoadError
from windlass.weights import resolve_model
from windlass.weights.stored_models import find_models, stored_model

HF = {"config.json": b"{}", "model.safetensors": b"12345678", "README.md": b"words"}


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MLC_LLM_HOME", str(tmp_path / "mlc"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def write(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir(parents=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory


def names() -> list[tuple[str, str]]:
    return [(model.name, model.kind) for model in find_models(model_roots())]


def test_models_are_found_where_they_lie(tmp_path: Path) -> None:
    snapshot = add_to_hub_cache(tmp_path / "hub", "org/name", HF)
    files = {"mlc-chat-config.json": b"{}", "params_shard_0.bin": b"12345678"}
    table = json.dumps({"records": [{"dataPath": "params_shard_0.bin"}]}).encode()
    mlc = write(tmp_path / "mlc/model_weights/hf/mlc-ai/X-MLC", {**files, "tensor-cache.json": table})
    here = write(tmp_path / "work/dist/mine", HF)
    write(tmp_path / "work/.hidden", HF)
    write(tmp_path / "work/not-a-model", {"config.json": b"{}", "notes.txt": b""})
    for name in ("a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf"):
        (tmp_path / "work/dist" / name).write_bytes(b"GGUF")
    found = find_models(model_roots())
    assert [(model.name, model.path, model.kind, model.num_bytes, model.root) for model in found] == [
        ("dist/a.gguf", tmp_path / "work/dist/a.gguf", "gguf", 4, "here"),
        ("dist/b-00001-of-00002.gguf", tmp_path / "work/dist/b-00001-of-00002.gguf", "gguf", 8, "here"),
        ("dist/mine", here, "hf", 15, "here"),
        ("org/name", snapshot, "hf", 15, "huggingface"),
        ("mlc-ai/X-MLC", mlc, "mlc", 10 + len(table), "mlc"),
    ]
    assert all(model.missing == () for model in found)


def test_every_name_leads_back(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    add_to_hub_cache(hub, "org/name", HF)
    add_to_hub_cache(hub, "org/name", HF, commit="b" * 40, revision="v1")
    add_to_hub_cache(hub, "org/name", HF, commit="c" * 40, revision="refs/pr/2")
    add_to_hub_cache(hub, "org/old", HF, commit="d" * 40)
    (hub / "models--org--old/refs/main").write_text("e" * 40)
    add_to_hub_cache(hub, "org/one-gguf", {"one-Q4_0.gguf": b"GGUF", "README.md": b""})
    add_to_hub_cache(hub, "org/ggufs", {"a-Q4_0.gguf": b"GGUF4", "BF16/a-BF16.gguf": b"GGUF16"})
    add_to_hub_cache(hub, "org/both", {**HF, "a.gguf": b"GGUF"})
    write(tmp_path / "mlc/model_weights/hf/mlc-ai/X-MLC", {"mlc-chat-config.json": b"{}"})
    write(tmp_path / "work/mine", HF)
    expected = [
        ("mine", "hf"),
        ("org/both", "hf"),
        ("org/both:a.gguf", "gguf"),
        ("org/ggufs:BF16/a-BF16.gguf", "gguf"),
        ("org/ggufs:a-Q4_0.gguf", "gguf"),
        ("org/name", "hf"),
        ("org/name@v1", "hf"),
        ("org/name@refs/pr/2", "hf"),
        (f"org/old@{'d' * 40}", "hf"),
        ("org/one-gguf", "gguf"),
        ("mlc-ai/X-MLC", "mlc"),
    ]
    assert sorted(names()) == sorted(expected)
    for model in find_models(model_roots()):
        assert resolve_model(model.name).resolve() == model.path.resolve()
        assert stored_model(model.name, model_roots()) == model
        assert stored_model(str(model.path), model_roots()) == model
    assert stored_model("HF://org/name", model_roots()).name == "org/name"


def test_what_is_missing(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {
        "config.json": b"{}",
        "model-1.safetensors": b"",
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    write(tmp_path / "work/shards", files)
    write(tmp_path / "work/broken", {**files, "model.safetensors.index.json": b"{"})
    write(tmp_path / "work/mlc", {"mlc-chat-config.json": b"{}"})
    table = json.dumps({"records": [{"dataPath": "params_shard_0.bin"}, {}]}).encode()
    write(tmp_path / "work/mlc-shards", {"mlc-chat-config.json": b"{}", "ndarray-cache.json": table})
    (tmp_path / "work/a-00001-of-00003.gguf").write_bytes(b"GGUF")
    (tmp_path / "work/a-00003-of-00003.gguf").write_bytes(b"GGUF")
    assert {model.name: model.missing for model in find_models(model_roots())} == {
        "a-00001-of-00003.gguf": ("a-00002-of-00003.gguf",),
        "broken": (),
        "mlc": ("tensor-cache.json",),
        "mlc-shards": ("params_shard_0.bin",),
        "shards": ("model-2.safetensors",),
    }


def test_an_interrupted_download_is_told_apart(tmp_path: Path) -> None:
    blobs = tmp_path / "hub/models--org--big/blobs"
    write(blobs, {"0123.incomplete": b"1234567", "4567": b"{}"})
    [model] = find_models(model_roots())
    assert (model.name, model.kind, model.num_bytes, model.path) == ("org/big", "partial", 7, blobs.parent)
    assert stored_model("org/big", model_roots()) == model
    with pytest.raises(LoadError, match="there is no such directory; to download it"):
        resolve_model("org/big")


def test_models_elsewhere(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", HF)
    model = stored_model(str(elsewhere), model_roots())
    assert (model.name, model.kind, model.root) == (str(elsewhere), "hf", "")
    write(tmp_path / "ggufs", {"a.gguf": b"GGUF"})
    model = stored_model(str(tmp_path / "ggufs"), model_roots())
    assert (model.path, model.kind) == (tmp_path / "ggufs/a.gguf", "gguf")


@pytest.mark.parametrize("name", ["org/name", "HF://org/name", "nowhere", "/nowhere", "org/name:Q4_0", "a b"])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(LoadError, match="there is no such model on this machine; `windlass list` shows"):
        stored_model(name, model_roots())


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"this is not a model: it has neither config\.json"):
        stored_model(str(write(tmp_path / "nothing", {"config.json": b"{}"})), model_roots())
