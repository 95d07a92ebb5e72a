"""Gemma 3 (Gemma Team, 2025): the models for text, and what writes the text of those that see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import finish, gated_mlp, read_layer_types, stored_as
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family
from windlass.models.gemma import GemmaNorm, embed, read_gemma_shape
from windlass.models.rope import read_layer_ropes

PREFIX = "language_model."
"""What the tensors of the text model begin with in a model that sees, and in every MLC directory."""

DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
"""Published configurations leave out what is so."""

_VISION_KEYS = {
    "vision_config",
    "mm_tokens_per_image",
    "boi_token_index",
    "eoi_token_index",
    "image_token_index",
    "image_token_id",
}


def define_text(config: ConfigReader) -> ModelDefinition:
    """A model for text."""
    return stored_as(_define("gemma3_text", config), lambda name: name.removeprefix(PREFIX))


def define(config: ConfigReader) -> ModelDefinition:
    """The text model of one that also sees; pictures are not supported, and their tensors ignored."""
    text = config.section("text_config")
    if text is None:
        raise config.error("text_config", "is missing")
    config.require("tie_word_embeddings", True, "a Gemma 3 that sees shares its embedding with the head")
    definition = _define("gemma3", text)
    config.finish(ignore=HARMLESS_KEYS | _VISION_KEYS)
    seeing = (r"vision_tower\..*", r"multi_modal_projector\..*")
    return replace(definition, ignored_tensors=(*definition.ignored_tensors, *seeing))


def _define(model_type: str, config: ConfigReader) -> ModelDefinition:
    """Gemma 2, with norms on queries and keys instead of caps, and angles of their own where a window slides."""
    config = config.with_defaults(DEFAULTS)
    shape = read_gemma_shape(config)
    scale = config.number("query_pre_attn_scalar", default=256.0) ** -0.5
    score_cap, logit_cap = (config.optional_number(f"{place}_logit_softcapping") for place in ("attn", "final"))
    window = config.optional_integer("sliding_window", default=4096)
    pattern = config.integer("sliding_window_pattern", default=6)
    slides = read_layer_types(config, [(layer + 1) % pattern != 0 for layer in range(shape.num_layers)])
    ropes = read_layer_ropes(
        config,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        theta=1_000_000.0,
        local_theta=10_000.0,
    )
    b = shape.builder()
    norm = GemmaNorm(config, b, shape.rms_norm_eps)
    config.finish(ignore=HARMLESS_KEYS)
    tables = [b.rope_table(rope.table) for rope in ropes]

    x = embed(b, f"{PREFIX}model.embed_tokens", shape)
    for layer in range(shape.num_layers):
        name = f"{PREFIX}model.layers.{layer}"
        h = norm(x, f"{name}.input_layernorm")
        q = b.linear(h, f"{name}.self_attn.q_proj", shape.query_width)
        k, v = (b.linear(h, f"{name}.self_attn.{part}_proj", shape.key_width) for part in "kv")
        for heads, part in ((q, "q"), (k, "k")):
            norm.heads(heads, f"{name}.self_attn.{part}_norm")
            b.rope(heads, tables[slides[layer]])
        b.write_kv(layer, k, v)
        seen = window if slides[layer] else None
        h = b.attention(q, layer, num_heads=shape.num_heads, scale=scale, window=seen, softcap=score_cap)
        h = b.linear(h, f"{name}.self_attn.o_proj", shape.hidden_size)
        b.add(x, norm(h, f"{name}.post_attention_layernorm"))
        h = norm(x, f"{name}.pre_feedforward_layernorm")
        h = gated_mlp(b, h, f"{name}.mlp", shape.intermediate_size, kind="gelu_tanh")
        b.add(x, norm(h, f"{name}.post_feedforward_layernorm"))
    head = f"{PREFIX}model.embed_tokens" if shape.tied_head else f"{PREFIX}lm_head"
    b.logits(norm(x, f"{PREFIX}model.norm"), head, softcap=logit_cap)
    # The length that the scaling reaches is what the configuration says.
    return finish(model_type, b, shape, context_length=shape.max_position_embeddings)


TEXT_FAMILY = Family("gemma3_text", define_text)
FAMILY = Family("gemma3", define)
