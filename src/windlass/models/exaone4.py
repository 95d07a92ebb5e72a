"""EXAONE 4.0 (LG AI Research, 2025)."""

from __future__ import annotations

from typing import Any

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_layer_types, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, Shapes
from windlass.models.gguf_config import read_sliding_layers
from windlass.models.olmo2 import GGUF_NORMS_BEHIND


def define(config: ConfigReader) -> ModelDefinition:
    """OLMo 2 with a norm per head; where some layers have a window, only those know positions."""
    shape = read_shape(config)
    window = config.optional_integer("sliding_window", default=4096)
    slides = _read_slides(config, shape.num_layers, window)
    return define_decoder(
        "exaone4",
        config,
        shape,
        qk_norm="head",
        norms_behind=True,
        windows=[window if slide else None for slide in slides],
        rotated=None if window is None else slides,
    )


def _read_slides(config: ConfigReader, num_layers: int, window: int | None) -> list[bool]:
    """Read which layers have the window: ``layer_types``, or all but every n-th."""
    pattern = 1
    if config.has("layer_types"):
        config.skip("sliding_window_pattern")  # a number, or letters such as LLLG
    elif window is not None:
        pattern = config.integer("sliding_window_pattern", default=4)
    slides = read_layer_types(config, [(layer + 1) % pattern != 0 for layer in range(num_layers)])
    if window is None and any(slides):
        raise config.error("layer_types", "has sliding_attention, but there is no sliding_window")
    return slides


def _read_gguf(reader: ConfigReader, config: dict[str, Any], _shapes: Shapes) -> None:
    has_window = reader.has("attention.sliding_window")
    config["sliding_window"] = reader.integer("attention.sliding_window") if has_window else None
    read_sliding_layers(reader, config)


FAMILY = Family(
    "exaone4",
    define,
    GgufDialect("exaone4", tensors=GGUF_NORMS_BEHIND, read=_read_gguf),
)
