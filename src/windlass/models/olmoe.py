"""OLMoE (Muennighoff et al., 2024)."""

from __future__ import annotations

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect
from windlass.models.mixture import Mixture, gguf_experts, qwen_mixture, read_experts


def define(config: ConfigReader) -> ModelDefinition:
    """Llama with experts in place of the MLP; queries and keys are normalized as a whole."""
    shape = read_shape(config)
    sizes = read_experts(config, shape, count="num_experts", width="intermediate_size", top_k=8)
    mixture = Mixture(*sizes, normalize=config.boolean("norm_topk_prob", default=False))
    if config.has("clip_qkv"):
        raise config.error("clip_qkv", "is not null: queries, keys and values that are clipped are not supported")
    bias = config.boolean("attention_bias", default=False)
    return define_decoder(
        "olmoe",
        config,
        shape,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="whole",
        mlp=lambda b, x, layer: qwen_mixture(b, x, f"model.layers.{layer}.mlp", mixture),
    )


FAMILY = Family(
    "olmoe",
    define,
    GgufDialect(
        "olmoe",
        keys={"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"},
        tensors=gguf_experts(),
    ),
)
