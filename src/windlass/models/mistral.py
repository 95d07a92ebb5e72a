"""Mistral 7B (Jiang et al., 2023) and the models of its shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, MlcDialect

DEFAULT_WINDOW = 4096
"""The window of a configuration that has no ``sliding_window``; null there means no window."""


def define(config: ConfigReader) -> ModelDefinition:
    """Llama, with a sliding window in all layers unless ``sliding_window`` is null."""
    shape = read_shape(config)
    window = config.optional_integer("sliding_window", default=DEFAULT_WINDOW)
    return define_decoder("mistral", config, shape, windows=[window] * shape.num_layers)


def read_mlc_window(reader: ConfigReader, config: dict[str, Any], context: int) -> int:
    """With ``attention_sink_size`` MLC keeps the first tokens in view when the window slides, which is not supported:
    the context ends where the window would begin to slide, up to where there is no difference."""
    window = reader.integer("sliding_window_size", default=-1, minimum=-1)
    config["sliding_window_size"] = window if window > 0 else None
    if window > 0 and (context == 0 or reader.integer("attention_sink_size", default=4, minimum=0) > 0):
        return min(context, window) or window
    return context


def _write_mlc(mlc: dict[str, Any], hf: Mapping[str, Any]) -> None:
    window = hf.get("sliding_window", DEFAULT_WINDOW)
    # No sinks: Hugging Face's window lets the first tokens go.
    mlc.update(sliding_window_size=-1 if window is None else window, attention_sink_size=0)


FAMILY = Family(
    "mistral",
    define,
    mlc=MlcDialect(
        renamed={"position_embedding_base": "rope_theta", "sliding_window_size": "sliding_window"},
        read=read_mlc_window,
        write=_write_mlc,
    ),
)
"""GGUF files have these models as llama."""
