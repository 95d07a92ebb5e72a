"""Mixtral (Jiang et al., 2024)."""

from __future__ import annotations

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family
from windlass.models.mixture import Mixture, read_experts, stacked_experts
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import Value


def define(config: ConfigReader) -> ModelDefinition:
    """Mistral, with experts in place of the MLP; the shares of those chosen add up to 1."""
    shape = read_shape(config)
    mixture = Mixture(
        *read_experts(config, shape.hidden_size, count="num_local_experts", width="intermediate_size", top_k=2)
    )
    window = config.integer("sliding_window") if config.has("sliding_window") else None

    def experts(b: ProgramBuilder, x: Value, layer: int) -> Value:
        stored, name = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.moe"
        logits = b.linear(x, f"{name}.gate", mixture.num_experts, parts=[f"{stored}.gate"], role="router")
        gate_up, down = stacked_experts(f"{stored}.experts", mixture.num_experts, gate="w1", up="w3", down="w2")
        return b.experts(
            x,
            mixture.route(b, logits),
            gate_up=f"{name}.e1_e3.weight",
            down=f"{name}.e2.weight",
            intermediate_size=mixture.intermediate_size,
            gate_up_parts=gate_up,
            down_parts=down,
        )

    return define_decoder("mixtral", config, shape, windows=[window] * shape.num_layers, mlp=experts)


FAMILY = Family("mixtral", define)
