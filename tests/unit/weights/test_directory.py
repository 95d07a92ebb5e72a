"""Telling what a directory is, and every way it can be unusable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.weight_files import write_mlc, write_safetensors
from windlass import json_files
from windlass.errors import LoadError
from windlass.quantization import SCHEMES
from windlass.weights import open_model_directory

MLC: dict[str, Any] = {"model_type": "llama", "quantization": "q4f16_1", "model_config": {"hidden_size": 8}}


def test_a_hugging_face_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    directory = open_model_directory(tmp_path)
    assert (directory.path, directory.dialect, directory.model_type) == (tmp_path, "hf", "llama")
    assert directory.config == {"model_type": "llama", "hidden_size": 8}
    assert (directory.mlc, directory.scheme) == (None, None)
    assert directory.config_path == tmp_path / "config.json"
    write_safetensors(tmp_path / "model.safetensors", {"x": np.ones(2, np.float32)})
    with directory.open_weights() as source:
        assert source.scheme is None
        assert source.read("x").tolist() == [1, 1]


def test_an_mlc_directory(tmp_path: Path) -> None:
    (tmp_path / "mlc-chat-config.json").write_text(json.dumps(MLC))
    (tmp_path / "config.json").write_text("not looked at")
    directory = open_model_directory(str(tmp_path))
    assert (directory.path, directory.dialect, directory.model_type) == (tmp_path, "mlc", "llama")
    assert directory.config == {"hidden_size": 8}
    assert directory.mlc == MLC
    assert directory.scheme == "q4f16_1"
    assert directory.config_path == tmp_path / "mlc-chat-config.json"
    write_mlc(tmp_path, {"x": np.ones(2, np.float16)})
    with directory.open_weights() as source:
        assert source.scheme is SCHEMES["q4f16_1"]


def test_places_that_are_not_model_directories(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no such directory"):
        open_model_directory(tmp_path / "nowhere")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(LoadError, match="a model is a directory, this is a file"):
        open_model_directory(tmp_path / "model.gguf")
    with pytest.raises(LoadError, match=r"neither config\.json .* nor mlc-chat-config\.json"):
        open_model_directory(tmp_path)
    with pytest.raises(LoadError, match=r"cannot be read|no such directory"):
        open_model_directory(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "llama",\n "x": }', r"not JSON: Expecting value at line 2 column 7"),
        ("", "not JSON: Expecting value at line 1 column 1"),
        ("[1]", "must be a JSON object, not an array"),
        ("null", "must be a JSON object, not null"),
        ("true", "must be a JSON object, not a boolean"),
        ('"llama"', "must be a JSON object, not a string"),
        ("{}", "model_type is missing"),
        ('{"model_type": 3}', "model_type must be a string, not a number"),
    ],
)
def test_bad_configurations(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(LoadError, match=message) as caught:
        open_model_directory(tmp_path)
    assert caught.value.path == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_config": 3}, "model_config must be an object, not a number"),
        ({"model_config": None}, "model_config must be an object, not null"),
        ({"model_type": None}, "model_type must be a string, not null"),
        ({"quantization": "q4f16_ft"}, "quantization 'q4f16_ft' is not supported; supported: q0f16, "),
    ],
)
def test_bad_mlc_configurations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "mlc-chat-config.json").write_text(json.dumps({**MLC, **changes}))
    with pytest.raises(LoadError, match=message):
        open_model_directory(tmp_path)


def test_files_that_are_too_large_or_not_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(LoadError, match="not UTF-8 at byte 16"):
        open_model_directory(tmp_path)
    monkeypatch.setattr(json_files, "MAX_JSON_BYTES", 10)
    file.write_text("{" + 18 * " " + "}")
    with pytest.raises(LoadError, match="20 bytes are too many for a JSON file; at most 10"):
        open_model_directory(tmp_path)


def test_a_configuration_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(tmp_path / "config.json")  # a loop
    with pytest.raises(LoadError):
        open_model_directory(tmp_path)
