"""gpt-oss (OpenAI, 2025)."""

from __future__ import annotations

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_layer_types, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family
from windlass.models.mixture import Mixture, read_experts
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
    sizes = read_experts(config, shape.hidden_size, count="num_local_experts", width="intermediate_size", top_k=4)
    mixture = Mixture(*sizes)
    if config.integer("experts_per_token", default=mixture.top_k) != mixture.top_k:
        raise config.error("experts_per_token", f"is not num_experts_per_tok, {mixture.top_k}")
    config.require("swiglu_limit", 7.0, "the clamp cannot be changed")
    config.require("swiglu_alpha", 1.702, "the gate cannot be changed")
    config.integer("initial_context_length", default=4096)  # the rotary embedding has it too
    window = config.optional_integer("sliding_window", default=128)
    slides = read_layer_types(config, [layer % 2 == 0 for layer in range(shape.num_layers)])
    bias = config.boolean("attention_bias", default=True)
    rope = read_rope(
        config, head_dim=shape.head_dim, max_position_embeddings=shape.max_position_embeddings, theta=_THETA
    )

    def experts(b: ProgramBuilder, x: Value, layer: int) -> Value:
        name = f"model.layers.{layer}.mlp"
        logits = b.linear(x, f"{name}.router", mixture.num_experts, bias=True, role="router")
        # Gate and up take turns.
        halves = RowOrder(mixture.num_experts, EVEN_THEN_ODD)
        gate_up, down = f"{name}.experts.gate_up_proj", f"{name}.experts.down_proj"
        return b.experts(
            x,
            mixture.route(b, logits),
            gate_up=gate_up,
            down=down,
            intermediate_size=mixture.intermediate_size,
            gate_up_parts=[Part(gate_up, rows=halves, transposed=True)],
            down_parts=[Part(down, transposed=True)],
            kind="clamped_swiglu",
            gate_up_bias=(f"{gate_up}_bias", [Part(f"{gate_up}_bias", rows=halves)]),
            down_bias=(f"{down}_bias", [Part(f"{down}_bias")]),
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


FAMILY = Family("gpt_oss", define)
