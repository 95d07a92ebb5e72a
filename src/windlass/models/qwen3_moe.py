"""Qwen3, the mixtures of experts (Yang et al., 2025)."""

from __future__ import annotations

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, gated_mlp, read_shape, read_windows
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family
from windlass.models.mixture import Mixture, qwen_mixture, read_experts, read_sparse_layers
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import Value


def define(config: ConfigReader) -> ModelDefinition:
    """Qwen3, with experts in place of the MLP."""
    shape = read_shape(config)
    sizes = read_experts(config, shape.hidden_size, count="num_experts", width="moe_intermediate_size", top_k=8)
    mixture = Mixture(*sizes, normalize=config.boolean("norm_topk_prob", default=False))
    sparse = read_sparse_layers(config, shape.num_layers)
    config.require("use_sliding_window", False, "sliding windows are not supported in this architecture")
    read_windows(config, shape.num_layers)

    def mlp(b: ProgramBuilder, x: Value, layer: int) -> Value:
        name = f"model.layers.{layer}.mlp"
        return qwen_mixture(b, x, name, mixture) if sparse[layer] else gated_mlp(b, x, name, shape.intermediate_size)

    bias = config.boolean("attention_bias", default=False)
    return define_decoder(
        "qwen3_moe", config, shape, qkv_name="c_attn", qkv_bias=bias, output_bias=bias, head_norm=True, mlp=mlp
    )


FAMILY = Family("qwen3_moe", define)
