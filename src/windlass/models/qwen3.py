"""Qwen3, the dense models (Yang et al., 2025)."""

from __future__ import annotations

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_shape, read_windows
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect
from windlass.models.qwen_mlc import qwen_mlc


def define(config: ConfigReader) -> ModelDefinition:
    """Llama, with queries and keys normalized per head; a head has 128 columns unless ``head_dim`` says otherwise."""
    shape = read_shape(config, head_dim=128)
    bias = config.boolean("attention_bias", default=False)
    windows = read_windows(config, shape.num_layers)
    return define_decoder(
        "qwen3", config, shape, qkv_name="c_attn", qkv_bias=bias, output_bias=bias, qk_norm="head", windows=windows
    )


FAMILY = Family(
    "qwen3", define, GgufDialect("qwen3"), qwen_mlc("tie_word_embeddings", "attention_bias", prefill_chunk_size=2048)
)
