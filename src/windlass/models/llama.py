"""Llama 1 to 3.3 (Touvron et al., 2023; Grattafiori et al., 2024) and the many models that copy it."""

from __future__ import annotations

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_shape
from windlass.models.definition import ModelDefinition


def define(config: ConfigReader) -> ModelDefinition:
    """The plain decoder; some copies have biases."""
    shape = read_shape(config)
    attention_bias = config.boolean("attention_bias", default=False)
    mlp_bias = config.boolean("mlp_bias", default=False)
    return define_decoder(
        "llama", config, shape, qkv_bias=attention_bias, output_bias=attention_bias, mlp_bias=mlp_bias
    )
