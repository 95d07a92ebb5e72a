"""OLMo 2 (OLMo Team, 2025) and OLMo 3 (OLMo Team, 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import Shape, finish, gated_mlp, project_qkv, read_layer_types, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes
from windlass.models.gguf_config import read_sliding_layers
from windlass.models.rope import RopeConfig, read_layer_ropes, read_rope

OLMO3_THETA = 500_000.0


def define(config: ConfigReader) -> ModelDefinition:
    """OLMo 2."""
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
    """Llama, normalized behind attention and MLP instead of before; and queries and keys, each as a whole."""
    bias = config.boolean("attention_bias", default=False)
    config.finish(ignore=HARMLESS_KEYS)
    b = shape.builder()
    eps = shape.rms_norm_eps
    full_table = b.rope_table(full.table)
    sliding_table = full_table if sliding.table == full.table else b.rope_table(sliding.table)

    x = b.embed("model.embed_tokens", shape.hidden_size)
    for layer, window in enumerate(windows):
        name = f"model.layers.{layer}"
        table = full_table if window is None else sliding_table
        q, k, v = project_qkv(b, x, f"{name}.self_attn", shape, bias=bias)
        q = b.rms_norm(q, f"{name}.self_attn.q_norm", eps)
        k = b.rms_norm(k, f"{name}.self_attn.k_norm", eps)
        b.rope(q, table)
        b.rope(k, table)
        b.write_kv(layer, k, v)
        h = b.attention(q, layer, num_heads=shape.num_heads, window=window)
        h = b.linear(h, f"{name}.self_attn.o_proj", shape.hidden_size, bias=bias)
        b.add(x, b.rms_norm(h, f"{name}.post_attention_layernorm", eps))
        h = gated_mlp(b, x, f"{name}.mlp", shape.intermediate_size)
        b.add(x, b.rms_norm(h, f"{name}.post_feedforward_layernorm", eps))
    b.logits(b.rms_norm(x, "model.norm", eps), "model.embed_tokens" if shape.tied_head else "lm_head")
    return finish(model_type, b, shape, context_length=full.context_length(shape.max_position_embeddings))


_GGUF_TENSORS = {
    "post_attention_norm": "model.layers.{layer}.post_attention_layernorm",
    "post_ffw_norm": "model.layers.{layer}.post_feedforward_layernorm",
}


def _read_gguf_olmo3(reader: ConfigReader, config: dict[str, Any], _shapes: Shapes) -> None:
    config["sliding_window"] = reader.integer("attention.sliding_window")
    read_sliding_layers(reader, config)
    theta = config.get("rope_theta", OLMO3_THETA)
    if reader.number("rope.freq_base_swa", default=theta) != theta:
        raise reader.error("rope.freq_base_swa", f"is not rope.freq_base, {theta:g}, which is not supported")


FAMILY = Family(
    "olmo2",
    define,
    GgufDialect("olmo2", tensors=_GGUF_TENSORS),
    mlc=MlcDialect(
        renamed={"position_embedding_base": "rope_theta"},
        fields=("rope_scaling", "tie_word_embeddings"),
        constants={"hidden_act": "silu", "pipeline_parallel_stages": 1},
    ),
)
OLMO3_FAMILY = Family(
    "olmo3",
    define_olmo3,
    GgufDialect("olmo2", marker="attention.sliding_window", tensors=_GGUF_TENSORS, read=_read_gguf_olmo3),
)
