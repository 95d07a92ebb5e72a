"""OLMo 2 (OLMo Team, 2025) and OLMo 3 (OLMo Team, 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from windlass.models.config import ConfigReader
from windlass.models.decoder import Shape, define_decoder, read_layer_types, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes
from windlass.models.gguf_config import read_sliding_layers
from windlass.models.rope import RopeConfig, read_layer_ropes, read_rope

OLMO3_THETA = 500_000.0


def define(config: ConfigReader) -> ModelDefinition:
    """OLMo 2: normalized behind attention and MLP instead of before; and queries and keys, each as a whole."""
    shape = read_shape(config)
    rope = read_rope(config, head_dim=shape.head_dim, max_position_embeddings=shape.max_position_embeddings)
    return _define("olmo2", config, shape, [None] * shape.num_layers, rope, rope)


def define_olmo3(config: ConfigReader) -> ModelDefinition:
    """OLMo 3: a sliding window in three of four layers, whose angles stay unscaled."""
    shape = read_shape(config)
    window = config.optional_integer("sliding_window", default=4096)
    slides = read_layer_types(config, [(layer + 1) % 4 != 0 for layer in range(shape.num_layers)])
    full, sliding = read_layer_ropes(
        config, head_dim=shape.head_dim, max_position_embeddings=shape.max_position_embeddings, theta=OLMO3_THETA
    )
    return _define("olmo3", config, shape, [window if slide else None for slide in slides], full, sliding)


def _define(
    model_type: str,
    config: ConfigReader,
    shape: Shape,
    windows: Sequence[int | None],
    full: RopeConfig,
    sliding: RopeConfig,
) -> ModelDefinition:
    bias = config.boolean("attention_bias", default=False)
    return define_decoder(
        model_type,
        config,
        shape,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="whole",
        norms_behind=True,
        windows=windows,
        rope=full,
        sliding_rope=sliding,
    )


GGUF_NORMS_BEHIND = {
    "post_attention_norm": "model.layers.{layer}.post_attention_layernorm",
    "post_ffw_norm": "model.layers.{layer}.post_feedforward_layernorm",
}
"""What normalizes what attention and MLP give, by the names of GGUF's tensors."""


def _read_gguf_olmo3(reader: ConfigReader, config: dict[str, Any], _shapes: Shapes) -> None:
    config["sliding_window"] = reader.integer("attention.sliding_window")
    read_sliding_layers(reader, config)
    theta = config.get("rope_theta", OLMO3_THETA)
    if reader.number("rope.freq_base_swa", default=theta) != theta:
        raise reader.error("rope.freq_base_swa", f"is not rope.freq_base, {theta:g}, which is not supported")


FAMILY = Family(
    "olmo2",
    define,
    GgufDialect("olmo2", tensors=GGUF_NORMS_BEHIND),
    mlc=MlcDialect(
        renamed={"position_embedding_base": "rope_theta"},
        fields=("rope_scaling", "tie_word_embeddings"),
        constants={"hidden_act": "silu", "pipeline_parallel_stages": 1},
    ),
)
OLMO3_FAMILY = Family(
    "olmo3",
    define_olmo3,
    GgufDialect("olmo2", marker="attention.sliding_window", tensors=GGUF_NORMS_BEHIND, read=_read_gguf_olmo3),
)
