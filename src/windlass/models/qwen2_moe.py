"""Qwen1.5-MoE and Qwen2-57B-A14B (Yang et al., 2024)."""

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
    gguf_shared_experts,
    qwen_mixture,
    read_experts,
    read_sparse_layers,
    refuse_windows,
)
from windlass.models.qwen_mlc import MIXTURE_FIELDS, qwen_mlc
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import Value


def define(config: ConfigReader) -> ModelDefinition:
    """Qwen2, with experts in place of the MLP, and beside them one that every token gets as far as its gate opens."""
    shape = read_shape(config)
    sizes = read_experts(config, shape, count="num_experts", width="moe_intermediate_size", top_k=4)
    mixture = Mixture(*sizes, normalize=config.boolean("norm_topk_prob", default=False))
    shared_size = config.integer("shared_expert_intermediate_size")
    sparse = read_sparse_layers(config, shape.num_layers)
    refuse_windows(config, shape.num_layers)
    config.require("qkv_bias", True, "queries, keys and values have biases in this architecture")

    def mlp(b: ProgramBuilder, x: Value, layer: int) -> Value:
        name = f"model.layers.{layer}.mlp"
        if not sparse[layer]:
            return gated_mlp(b, x, name, shape.intermediate_size)
        out = qwen_mixture(b, x, name, mixture)
        shared = gated_mlp(b, x, f"{name}.shared_expert", shared_size)
        b.sigmoid_gate(shared, b.linear(x, f"{name}.shared_expert_gate", 1, role="router"))
        b.add(out, shared)
        return out

    return define_decoder("qwen2_moe", config, shape, qkv_name="c_attn", qkv_bias=True, mlp=mlp)


def _read_gguf(_reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    config["mlp_only_layers"] = dense_layers(config, shapes)


FAMILY = Family(
    "qwen2_moe",
    define,
    GgufDialect(
        "qwen2moe",
        keys={**GGUF_KEYS, "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        tensors={
            **gguf_experts(),
            **gguf_shared_experts("mlp.shared_expert"),
            "ffn_gate_inp_shexp": "model.layers.{layer}.mlp.shared_expert_gate",
        },
        read=_read_gguf,
    ),
    qwen_mlc("tie_word_embeddings", *MIXTURE_FIELDS, "shared_expert_intermediate_size", optional=("mlp_only_layers",)),
)
