"""Qwen3, the mixtures of experts (Yang et al., 2025)."""

from __future__ import annotations

from typing import Any

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, gated_mlp, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, Shapes
from windlass.models.mixture import (
    GGUF_KEYS,
    Mixture,
    dense_layers,
    gguf_experts,
    qwen_mixture,
    read_experts,
    read_sparse_layers,
    refuse_windows,
)
from windlass.models.qwen_mlc import MIXTURE_FIELDS, qwen_mlc
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import Value


def define(config: ConfigReader) -> ModelDefinition:
    """Qwen3, with experts in place of the MLP."""
    shape = read_shape(config)
    count = "num_experts" if config.has("num_experts") else "num_local_experts"  # as transformers 5 writes it
    sizes = read_experts(config, shape, count=count, width="moe_intermediate_size", top_k=8)
    mixture = Mixture(*sizes, normalize=config.boolean("norm_topk_prob", default=False))
    sparse = read_sparse_layers(config, shape.num_layers)
    refuse_windows(config, shape.num_layers)

    def mlp(b: ProgramBuilder, x: Value, layer: int) -> Value:
        name = f"model.layers.{layer}.mlp"
        if sparse[layer]:
            return qwen_mixture(b, x, name, mixture)
        return gated_mlp(b, x, name, shape.intermediate_size)

    bias = config.boolean("attention_bias", default=False)
    return define_decoder(
        "qwen3_moe", config, shape, qkv_name="c_attn", qkv_bias=bias, output_bias=bias, qk_norm="head", mlp=mlp
    )


def _read_gguf(_reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    # Files do not say it; llama.cpp does so always.
    config["norm_topk_prob"] = True
    config["mlp_only_layers"] = dense_layers(config, shapes)


FAMILY = Family(
    "qwen3_moe",
    define,
    GgufDialect("qwen3moe", keys=GGUF_KEYS, tensors=gguf_experts(), read=_read_gguf),
    qwen_mlc(
        "tie_word_embeddings",
        "attention_bias",
        *MIXTURE_FIELDS,
        optional=("mlp_only_layers",),
        prefill_chunk_size=2048,
    ),
)
