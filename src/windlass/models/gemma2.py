"""Gemma 2 (Gemma Team, 2024)."""

from __future__ import annotations

from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import finish, gated_mlp, project_qkv, read_layer_types
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family
from windlass.models.gemma import GemmaNorm, embed, read_gemma_shape
from windlass.models.rope import read_rope

DEFAULT_WINDOW = 4096

_DEFAULTS: dict[str, Any] = {
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def define(config: ConfigReader) -> ModelDefinition:
    """Gemma, with norms behind attention and MLP too, a window in every other layer, and capped scores and logits."""
    config = config.with_defaults(_DEFAULTS)
    shape = read_gemma_shape(config)
    scale = config.number("query_pre_attn_scalar", default=256.0) ** -0.5
    score_cap, logit_cap = (config.optional_number(f"{place}_logit_softcapping") for place in ("attn", "final"))
    window = config.optional_integer("sliding_window", default=DEFAULT_WINDOW)
    slides = read_layer_types(config, [layer % 2 == 0 for layer in range(shape.num_layers)])
    rope = read_rope(config, head_dim=shape.head_dim, max_position_embeddings=shape.max_position_embeddings)
    b = shape.builder()
    norm = GemmaNorm(config, b, shape.rms_norm_eps)
    config.finish(ignore=HARMLESS_KEYS)
    table = b.rope_table(rope.table)

    x = embed(b, "model.embed_tokens", shape)
    for layer in range(shape.num_layers):
        name = f"model.layers.{layer}"
        q, k, v = project_qkv(b, norm(x, f"{name}.input_layernorm"), f"{name}.self_attn", shape)
        b.rope(q, table)
        b.rope(k, table)
        b.write_kv(layer, k, v)
        seen = window if slides[layer] else None
        h = b.attention(q, layer, num_heads=shape.num_heads, scale=scale, window=seen, softcap=score_cap)
        h = b.linear(h, f"{name}.self_attn.o_proj", shape.hidden_size)
        b.add(x, norm(h, f"{name}.post_attention_layernorm"))
        h = norm(x, f"{name}.pre_feedforward_layernorm")
        h = gated_mlp(b, h, f"{name}.mlp", shape.intermediate_size, kind="gelu_tanh")
        b.add(x, norm(h, f"{name}.post_feedforward_layernorm"))
    b.logits(norm(x, "model.norm"), "model.embed_tokens" if shape.tied_head else "lm_head", softcap=logit_cap)
    return finish("gemma2", b, shape, context_length=rope.context_length(shape.max_position_embeddings))


FAMILY = Family("gemma2", define)
