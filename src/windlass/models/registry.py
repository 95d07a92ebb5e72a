"""From a model type and its configuration to a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from windlass.errors import LoadError
from windlass.models import llama, mistral, mlc_config, quantization_config, qwen2, qwen3
from windlass.models.config import ConfigReader
from windlass.models.definition import ModelDefinition

_ARCHITECTURES: dict[str, Callable[[ConfigReader], ModelDefinition]] = {
    "llama": llama.define,
    "mistral": mistral.define,
    "qwen2": qwen2.define,
    "qwen3": qwen3.define,
}


def supported_model_types() -> tuple[str, ...]:
    """The values of ``model_type`` that Windlass can run."""
    return tuple(_ARCHITECTURES)


def define_model(
    model_type: str, config: Mapping[str, Any], path: Path, *, dialect: Literal["hf", "mlc"]
) -> ModelDefinition:
    """Write the program of a model.

    Args:
        model_type: the architecture, as config.json or mlc-chat-config.json names it.
        config: the object of config.json ("hf"), or ``model_config`` of mlc-chat-config.json ("mlc").
        path: the file it came from, for error messages.
        dialect: which of the two it is.

    Raises:
        LoadError: the architecture is not supported, or the configuration lacks, mistypes or contradicts something,
            or holds something that may change what the model computes and is not understood.
    """
    define = _ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if define is None:
        raise LoadError(path, f"model_type {model_type!r} is not supported; supported: {', '.join(_ARCHITECTURES)}")
    if dialect == "mlc":
        translated, context_length = mlc_config.from_mlc_config(model_type, config, path)
        return replace(define(ConfigReader(translated, path)), context_length=context_length)
    reader = ConfigReader(config, path)
    reader.section(quantization_config.KEY)  # read_quantization says what is in it
    return define(reader)


def to_mlc_config(model_type: str, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the ``model_config`` object of mlc-chat-config.json for a Hugging Face ``config`` read from ``path``.

    Raises:
        LoadError: as ``define_model``.
    """
    return mlc_config.to_mlc_config(define_model(model_type, config, path, dialect="hf"), config)
