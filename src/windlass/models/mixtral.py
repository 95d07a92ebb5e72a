"""Mixtral (Jiang et al., 2024)."""

from __future__ import annotations

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect
from windlass.models.mixture import Mixture, gguf_experts, read_experts, stacked_experts
from windlass.models.rope import read_rope
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import Value

_THETA = 1_000_000.0


def define(config: ConfigReader) -> ModelDefinition:
    """Mistral, with experts in place of the MLP; the shares of those chosen add up to 1."""
    shape = read_shape(config)
    mixture = Mixture(*read_experts(config, shape, count="num_local_experts", width="intermediate_size", top_k=2))
    rope = read_rope(
        config, head_dim=shape.head_dim, max_position_embeddings=shape.max_position_embeddings, theta=_THETA
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

    return define_decoder("mixtral", config, shape, windows=[window] * shape.num_layers, rope=rope, mlp=experts)


FAMILY = Family(
    "mixtral",
    define,
    GgufDialect(
        "llama",
        marker="expert_count",
        keys={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        tensors=gguf_experts("block_sparse_moe", names=("w1", "w3", "w2")),
        paired={"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"},
    ),
    MlcDialect(
        renamed={"position_embedding_base": "rope_theta"},
        fields=(
            "tie_word_embeddings",
            "rope_scaling",
            "disaggregation",
            "num_local_experts",
            "num_experts_per_tok",
        ),
        optional=("sliding_window",),
        constants={"pipeline_parallel_stages": 1, "disaggregation": False},
    ),
)
