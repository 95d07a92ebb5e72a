"""gpt-oss (OpenAI, 2025)."""

from __future__ import annotations

from typing import Any

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_layer_types, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, Shapes
from windlass.models.mixture import EXPERTS_APART, Mixture, gguf_experts, read_experts, stacked_experts
from windlass.models.rope import read_rope, rope_section
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import Value
from windlass.program.program import EVEN_THEN_ODD, Part, RowOrder

_THETA = 150_000.0
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""What a configuration that says nothing of it means."""


def define(config: ConfigReader) -> ModelDefinition:
    """Llama with biases, attention sinks, a window in every second layer, and experts with a clamped gate."""
    if rope_section(config) is None:
        config = config.with_defaults({"rope_parameters": _ROPE})
    shape = read_shape(config, head_dim=64)
    sizes = read_experts(config, shape, count="num_local_experts", width="intermediate_size", top_k=4)
    mixture = Mixture(*sizes)
    if config.integer("experts_per_token", default=mixture.top_k) != mixture.top_k:
        raise config.error("experts_per_token", f"is not num_experts_per_tok, {mixture.top_k}")
    config.require("swiglu_limit", 7.0, "the clamp cannot be changed")
    config.require("swiglu_alpha", 1.702, "the gate cannot be changed")
    config.integer("initial_context_length", default=4096)  # the rotary embedding has it too
    window = config.optional_integer("sliding_window", default=128)
    slides = read_layer_types(config, [layer % 2 == 0 for layer in range(shape.num_layers)])
    bias = config.boolean("attention_bias", default=True)
    apart = config.boolean(EXPERTS_APART, default=False)
    floats = config.section("quantization_config") is None  # [K, N]; blocks of MXFP4 are [N, K]
    rope = read_rope(
        config, head_dim=shape.head_dim, max_position_embeddings=shape.max_position_embeddings, theta=_THETA
    )

    def experts(b: ProgramBuilder, x: Value, layer: int) -> Value:
        name = f"model.layers.{layer}.mlp"
        logits = b.linear(x, f"{name}.router", mixture.num_experts, bias=True, role="router")
        gate_up, down = f"{name}.experts.gate_up_proj", f"{name}.experts.down_proj"
        if apart:
            gate_up_parts, down_parts = stacked_experts(f"{name}.experts", mixture.num_experts)
            biases = stacked_experts(f"{name}.experts", mixture.num_experts, suffix="bias")
        else:
            halves = RowOrder(mixture.num_experts, EVEN_THEN_ODD)  # gate and up take turns
            gate_up_parts, down_parts = [Part(gate_up, halves, floats)], [Part(down, transposed=floats)]
            biases = [Part(f"{gate_up}_bias", halves)], [Part(f"{down}_bias")]
        return b.experts(
            x,
            mixture.route(b, logits),
            gate_up=gate_up,
            down=down,
            intermediate_size=mixture.intermediate_size,
            gate_up_parts=gate_up_parts,
            down_parts=down_parts,
            kind="clamped_swiglu",
            gate_up_bias=(f"{gate_up}_bias", biases[0]),
            down_bias=(f"{down}_bias", biases[1]),
        )

    return define_decoder(
        "gpt_oss",
        config,
        shape,
        qkv_bias=bias,
        output_bias=bias,
        windows=[window if sliding else None for sliding in slides],
        sinks=True,
        rope=rope,
        mlp=experts,
    )


def _read_gguf(_reader: ConfigReader, config: dict[str, Any], _shapes: Shapes) -> None:
    config[EXPERTS_APART] = True
    if "rope_scaling" in config:
        config["rope_scaling"]["truncate"] = False
    else:
        config["rope_scaling"] = {"rope_type": "default"}


FAMILY = Family(
    "gpt_oss",
    define,
    GgufDialect(
        "gpt-oss",
        keys={
            "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "intermediate_size",
            "attention.sliding_window": "sliding_window",
        },
        tensors={
            **gguf_experts(gate="router"),
            "post_attention_norm": "model.layers.{layer}.post_attention_layernorm",
            "attn_sinks.weight": "model.layers.{layer}.self_attn.sinks",
        },
        read=_read_gguf,
    ),
)
