"""Command-R and Command-R+ (Cohere, 2024), and Command-R7B and Command-A ("cohere2", 2024 and 2025)."""

from __future__ import annotations

from functools import partial
from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import finish, gated_mlp, read_shape, split_qkv
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, Shapes
from windlass.models.rope import read_rope
from windlass.program.program import EVEN_THEN_ODD, Part, RowOrder

_DEFAULTS = {"rms_norm_eps": 1e-5, "tie_word_embeddings": True}


def define(config: ConfigReader, *, model_type: str = "cohere") -> ModelDefinition:
    """Llama with one norm per layer that feeds both halves, heads rotated in pairs, and scaled logits."""
    config = config.renamed({"layer_norm_eps": "rms_norm_eps"}).with_defaults(_DEFAULTS)
    shape = read_shape(config)
    bias = config.boolean("attention_bias", default=False)
    head_norm = model_type == "cohere" and config.boolean("use_qk_norm", default=False)
    windows = _read_windows(config, shape.num_layers) if model_type == "cohere2" else None
    logit_scale = config.number("logit_scale", default=0.0625)
    rope = read_rope(
        config,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        theta=500_000.0,
    )
    config.finish(ignore=HARMLESS_KEYS | {"use_embedding_sharing", "use_gated_activation", "use_parallel_block"})
    b = shape.builder()
    table = b.rope_table(rope.table)
    x = b.embed("model.embed_tokens", shape.hidden_size)
    for layer in range(shape.num_layers):
        name = f"model.layers.{layer}"
        normed = b.layer_norm(x, f"{name}.input_layernorm", shape.rms_norm_eps, bias=False)
        halves = [RowOrder(heads, EVEN_THEN_ODD) for heads in (shape.num_heads, shape.num_kv_heads)]
        orders, widths = (*halves, None), (shape.query_width, shape.key_width, shape.key_width)
        parts = [
            Part(f"{name}.self_attn.{part}_proj", rows, num_rows=count)
            for part, rows, count in zip("qkv", orders, widths, strict=True)
        ]
        width = shape.query_width + 2 * shape.key_width
        q, k, v = split_qkv(b.linear(normed, f"{name}.self_attn.qkv_proj", width, parts=parts, bias=bias), shape)
        for value, letter, rows in ((q, "q", halves[0]), (k, "k", halves[1])):
            if head_norm:
                norm = f"{name}.self_attn.{letter}_norm"
                order = [Part(norm, rows)]
                b.head_norm(value, norm, shape.rms_norm_eps, centered=True, per_head=True, parts=order)
            if windows is None or windows[layer] is not None:
                b.rope(value, table)
        b.write_kv(layer, k, v)
        window = None if windows is None else windows[layer]
        h = b.attention(q, layer, num_heads=shape.num_heads, window=window)
        attended = b.linear(h, f"{name}.self_attn.o_proj", shape.hidden_size, bias=bias)
        h = gated_mlp(b, normed, f"{name}.mlp", shape.intermediate_size)
        b.add(x, attended)
        b.add(x, h)
    x = b.layer_norm(x, "model.norm", shape.rms_norm_eps, bias=False)
    b.scale(x, logit_scale)
    b.logits(x, "model.embed_tokens" if shape.tied_head else "lm_head")
    return finish(model_type, b, shape, context_length=rope.context_length(shape.max_position_embeddings))


def _read_windows(config: ConfigReader, num_layers: int) -> list[int | None]:
    """Which layers have a window; the others, every fourth one, are not rotated."""
    window = config.integer("sliding_window", default=4096)
    pattern = config.integer("sliding_window_pattern", default=4)
    types = config.strings("layer_types")
    if types is None:
        return [window if (layer + 1) % pattern else None for layer in range(num_layers)]
    if len(types) != num_layers or not set(types) <= {"sliding_attention", "full_attention"}:
        raise config.error("layer_types", f"must be {num_layers} of sliding_attention and full_attention")
    return [window if kind == "sliding_attention" else None for kind in types]


def _read_gguf(reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    config["rms_norm_eps"] = reader.number("attention.layer_norm_epsilon")
    config["logit_scale"] = reader.number("logit_scale")
    config["use_qk_norm"] = "model.layers.0.self_attn.q_norm.weight" in shapes


def _read_gguf2(reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    _read_gguf(reader, config, shapes)
    del config["use_qk_norm"]
    config["sliding_window"] = reader.integer("attention.sliding_window")


# MLC LLM's program for Cohere has neither the scale of the logits nor the rotation in pairs.
FAMILY = Family("cohere", define, GgufDialect("command-r", read=_read_gguf))
FAMILY2 = Family("cohere2", partial(define, model_type="cohere2"), GgufDialect("cohere2", read=_read_gguf2))
