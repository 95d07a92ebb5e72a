"""Mistral 7B (Jiang et al., 2023) and the models of its shape."""

from __future__ import annotations

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_shape
from windlass.models.definition import ModelDefinition

DEFAULT_WINDOW = 4096
"""The window of a configuration that has no ``sliding_window``; null there means no window."""


def define(config: ConfigReader) -> ModelDefinition:
    """Llama, with a sliding window in all layers unless ``sliding_window`` is null."""
    shape = read_shape(config)
    window = config.optional_integer("sliding_window", default=DEFAULT_WINDOW)
    return define_decoder("mistral", config, shape, windows=[window] * shape.num_layers)
