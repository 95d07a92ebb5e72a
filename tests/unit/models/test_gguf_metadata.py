"""Metadata of GGUF files of every family: whatever is missing or odd is a ``LoadError``, or does not matter."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from support.llama_cpp_files import FAMILY_FILES
from windlass.errors import LoadError
from windlass.models.gguf_config import from_gguf_metadata, read_gguf_pooling
from windlass.models.registry import define_model, find_gguf_family
from windlass.weights.gguf import GgufModel, read_gguf
from windlass.weights.gguf_names import hugging_face_tensors, read_rope_factors

GONE = object()
ODD = (GONE, 0, -1, 2**31, "x", 1e30, True, [1], None)


def is_refused(model: GgufModel) -> bool:
    """Define the model; anything but a ``LoadError`` goes through."""
    try:
        define(model)
    except LoadError:
        return True
    return False


def define(model: GgufModel) -> None:
    model_type, dialect = find_gguf_family(model.metadata, model.path)
    tensors = hugging_face_tensors(model, dialect.tensors, dialect.paired)
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    config = from_gguf_metadata(dialect, model.metadata, shapes, read_rope_factors(model), model.path)
    define_model(model_type, config, model.path, dialect="hf")
    read_gguf_pooling(dialect, model.metadata, model.path)


@pytest.mark.parametrize("name", FAMILY_FILES)
def test_odd_values(tmp_path: Path, name: str) -> None:
    model = read_gguf(FAMILY_FILES[name](tmp_path / "m.gguf"))
    define(model)
    architecture = model.metadata["general.architecture"]
    refused = 0
    for key in [key for key in model.metadata if key.startswith(f"{architecture}.")]:
        for value in ODD:
            metadata: dict[str, Any] = {**model.metadata, key: value}
            if value is GONE:
                del metadata[key]
            refused += is_refused(dataclasses.replace(model, metadata=metadata))
    assert refused > len(ODD)


@pytest.mark.parametrize("name", FAMILY_FILES)
def test_tensors_that_are_not_there(tmp_path: Path, name: str) -> None:
    model = read_gguf(FAMILY_FILES[name](tmp_path / "m.gguf"))
    names = [tensor.name for tensor in model.tensors[:60]]
    refused = [
        name
        for name in names
        if is_refused(dataclasses.replace(model, tensors=[one for one in model.tensors if one.name != name]))
    ]
    assert "token_embd.weight" in refused
