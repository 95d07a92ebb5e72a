"""Granite 3 (Granite Team, IBM, 2024), the dense models."""

from __future__ import annotations

from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import finish, gated_mlp, project_qkv, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, Shapes
from windlass.models.llama import GGUF_PAIRED, read_gguf_biases
from windlass.models.rope import read_rope


def define(config: ConfigReader) -> ModelDefinition:
    """Llama, with four multipliers: of embeddings, attention scores, what is added to the residual, and logits."""
    shape = read_shape(config)
    bias = config.boolean("attention_bias", default=False)
    mlp_bias = config.boolean("mlp_bias", default=False)
    embedding, attention, residual = (
        config.number(f"{name}_multiplier", default=1.0) for name in ("embedding", "attention", "residual")
    )
    logits_scaling = config.number("logits_scaling", default=1.0)
    rope = read_rope(config, head_dim=shape.head_dim, max_position_embeddings=shape.max_position_embeddings)
    config.finish(ignore=HARMLESS_KEYS)
    b = shape.builder()
    table = b.rope_table(rope.table)

    x = b.embed("model.embed_tokens", shape.hidden_size)
    b.scale(x, embedding)
    for layer in range(shape.num_layers):
        name = f"model.layers.{layer}"
        h = b.rms_norm(x, f"{name}.input_layernorm", shape.rms_norm_eps)
        q, k, v = project_qkv(b, h, f"{name}.self_attn", shape, bias=bias)
        b.rope(q, table)
        b.rope(k, table)
        b.write_kv(layer, k, v)
        h = b.attention(q, layer, num_heads=shape.num_heads, scale=attention)
        h = b.linear(h, f"{name}.self_attn.o_proj", shape.hidden_size, bias=bias)
        b.scale(h, residual)
        b.add(x, h)
        h = b.rms_norm(x, f"{name}.post_attention_layernorm", shape.rms_norm_eps)
        h = gated_mlp(b, h, f"{name}.mlp", shape.intermediate_size, bias=mlp_bias)
        b.scale(h, residual)
        b.add(x, h)
    x = b.rms_norm(x, "model.norm", shape.rms_norm_eps)
    b.scale(x, 1 / logits_scaling)
    b.logits(x, "model.embed_tokens" if shape.tied_head else "lm_head")
    return finish("granite", b, shape, context_length=rope.context_length(shape.max_position_embeddings))


def _read_gguf(reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    read_gguf_biases(reader, config, shapes)
    for key, name in (
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ):
        if reader.has(key):
            config[name] = reader.number(key)


FAMILY = Family("granite", define, GgufDialect("granite", paired=GGUF_PAIRED, read=_read_gguf))
