"""Llama 1 to 3.3 (Touvron et al., 2023; Grattafiori et al., 2024) and the many models that copy it."""

from __future__ import annotations

from typing import Any

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes


def define(config: ConfigReader) -> ModelDefinition:
    """The plain decoder; some copies have biases."""
    shape = read_shape(config)
    attention_bias = config.boolean("attention_bias", default=False)
    mlp_bias = config.boolean("mlp_bias", default=False)
    return define_decoder(
        "llama", config, shape, qkv_bias=attention_bias, output_bias=attention_bias, mlp_bias=mlp_bias
    )


GGUF_PAIRED = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
"""Rows that llama.cpp orders for rotation in pairs."""


def read_gguf_biases(_reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    """Whether there are biases is told by the tensors."""
    config["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in shapes
    config["mlp_bias"] = "model.layers.0.mlp.gate_proj.bias" in shapes


FAMILY = Family(
    "llama",
    define,
    GgufDialect("llama", paired=GGUF_PAIRED, read=read_gguf_biases),
    MlcDialect(
        renamed={"position_embedding_base": "rope_theta"},
        fields=("tie_word_embeddings", "rope_scaling", "disaggregation"),
        constants={"pipeline_parallel_stages": 1, "disaggregation": False},
    ),
)
