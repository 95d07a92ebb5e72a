"""Qwen2 and Qwen2.5 (Yang et al., 2024)."""

from __future__ import annotations

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_shape, read_windows
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect
from windlass.models.qwen_mlc import qwen_mlc


def define(config: ConfigReader) -> ModelDefinition:
    """Llama, with biases on queries, keys and values, and a sliding window in the upper layers when switched on."""
    shape = read_shape(config)
    windows = read_windows(config, shape.num_layers)
    return define_decoder("qwen2", config, shape, qkv_name="c_attn", qkv_bias=True, windows=windows)


FAMILY = Family("qwen2", define, GgufDialect("qwen2"), qwen_mlc("tie_word_embeddings"))
