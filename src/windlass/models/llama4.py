"""The text models of Llama 4 (Meta, 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import finish, gated_mlp, read_shape, stored_as
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, Shapes
from windlass.models.mixture import (
    EXPERTS_APART,
    Mixture,
    gguf_experts,
    gguf_shared_experts,
    read_experts,
    stacked_experts,
)
from windlass.models.rope import QueryScale, read_rope
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import Value
from windlass.program.program import EVEN_THEN_ODD, Part, RowOrder

_THETA = 500_000.0
_KINDS = ("chunked_attention", "full_attention")
_VISION_KEYS = {"vision_config", "boi_token_index", "eoi_token_index", "image_token_index"}


def define(config: ConfigReader) -> ModelDefinition:
    """Layers that rotate queries and keys and see a chunk, layers that do neither; experts that get a scaled input."""
    shape = read_shape(config, head_dim=128)
    sizes = read_experts(config, shape, count="num_local_experts", width="intermediate_size", top_k=1)
    mixture = Mixture(*sizes, scores="sigmoid", normalize=False)
    dense_size = config.integer("intermediate_size_mlp", default=16384)
    sparse = _read_sparse_layers(config, shape.num_layers)
    rotated = _read_rotated_layers(config, shape.num_layers)
    chunks = _read_chunks(config, rotated)
    norm = config.boolean("use_qk_norm", default=True)
    scaled = config.switch("attn_temperature_tuning", default=True)
    scale = QueryScale(
        shape.head_dim, config.number("attn_scale", default=0.1), config.integer("floor_scale", default=8192)
    )
    bias = config.boolean("attention_bias", default=False)
    apart = config.boolean(EXPERTS_APART, default=False)
    rope = read_rope(
        config, head_dim=shape.head_dim, max_position_embeddings=shape.max_position_embeddings, theta=_THETA
    )
    config.finish(ignore=HARMLESS_KEYS | {"for_llm_compressor"})
    b = shape.builder()
    table, scale_table = b.rope_table(rope.table), b.rope_table(scale)

    def attention(x: Value, layer: int, name: str) -> Value:
        q, k, v = (
            b.linear(x, f"{name}.{part}_proj", width, parts=[Part(f"{name}.{part}_proj", rows=rows)], bias=bias)
            for part, width, rows in (
                ("q", shape.query_width, RowOrder(shape.num_heads, EVEN_THEN_ODD)),
                ("k", shape.key_width, RowOrder(shape.num_kv_heads, EVEN_THEN_ODD)),
                ("v", shape.key_width, None),
            )
        )
        if rotated[layer]:
            b.rope(q, table)
            b.rope(k, table)
            if norm:
                b.head_norm(q, None, shape.rms_norm_eps)
                b.head_norm(k, None, shape.rms_norm_eps)
        elif scaled:
            b.rope(q, scale_table)
        b.write_kv(layer, k, v)
        out = b.attention(q, layer, num_heads=shape.num_heads, chunk=chunks[layer])
        return b.linear(out, f"{name}.o_proj", shape.hidden_size, bias=bias)

    x = b.embed("model.embed_tokens", shape.hidden_size)
    for layer in range(shape.num_layers):
        name = f"model.layers.{layer}"
        h = b.rms_norm(x, f"{name}.input_layernorm", shape.rms_norm_eps)
        b.add(x, attention(h, layer, f"{name}.self_attn"))
        h = b.rms_norm(x, f"{name}.post_attention_layernorm", shape.rms_norm_eps)
        name = f"{name}.feed_forward"
        b.add(x, _experts(b, h, name, mixture, apart) if sparse[layer] else gated_mlp(b, h, name, dense_size))
    x = b.rms_norm(x, "model.norm", shape.rms_norm_eps)
    b.logits(x, "model.embed_tokens" if shape.tied_head else "lm_head")
    return finish("llama4_text", b, shape, context_length=rope.context_length(shape.max_position_embeddings))


def _experts(b: ProgramBuilder, x: Value, name: str, mixture: Mixture, apart: bool) -> Value:
    logits = b.linear(x, f"{name}.router", mixture.num_experts, role="router")
    gate_up, down = f"{name}.experts.gate_up_proj", f"{name}.experts.down_proj"
    gate_up_parts, down_parts = [Part(gate_up, transposed=True)], [Part(down, transposed=True)]
    if apart:
        gate_up_parts, down_parts = stacked_experts(f"{name}.experts", mixture.num_experts)
    out = b.experts(
        x,
        mixture.route(b, logits),
        gate_up=gate_up,
        down=down,
        intermediate_size=mixture.intermediate_size,
        gate_up_parts=gate_up_parts,
        down_parts=down_parts,
        scale_input=True,
    )
    b.add(out, gated_mlp(b, x, f"{name}.shared_expert", mixture.intermediate_size))
    return out


def _read_sparse_layers(config: ConfigReader, num_layers: int) -> Sequence[bool]:
    step = config.integer("interleave_moe_layer_step", default=1)
    layers = config.integers("moe_layers")
    return [(layer + 1) % step == 0 if layers is None else layer in layers for layer in range(num_layers)]


def _read_rotated_layers(config: ConfigReader, num_layers: int) -> Sequence[bool]:
    """``no_rope_layers`` has 1 for the layers with a rotary embedding."""
    interval = config.integer("no_rope_layer_interval", default=4)
    layers = config.integers("no_rope_layers")
    if not layers:
        return [(layer + 1) % interval != 0 for layer in range(num_layers)]
    if len(layers) < num_layers or not set(layers) <= {0, 1}:
        raise config.error("no_rope_layers", f"must have a 0 or a 1 for each of {num_layers} layers")
    return [layers[layer] == 1 for layer in range(num_layers)]


def _read_chunks(config: ConfigReader, rotated: Sequence[bool]) -> Sequence[int | None]:
    """How many positions a chunk of each layer has; None for those without."""
    size = config.integer("attention_chunk_size") if config.has("attention_chunk_size") else None
    kinds = config.strings("layer_types") or [_KINDS[0] if rotates else _KINDS[1] for rotates in rotated]
    if len(kinds) != len(rotated) or not set(kinds) <= set(_KINDS):
        raise config.error("layer_types", f"must have one of {', '.join(_KINDS)} for each of {len(rotated)} layers")
    return [size if kind == _KINDS[0] else None for kind in kinds]


def define_seeing(config: ConfigReader) -> ModelDefinition:
    """The text model of a Llama 4 that also sees; pictures are not supported, and their tensors ignored."""
    text = config.section("text_config")
    if text is None:
        raise config.error("text_config", "is missing")
    if config.has("tie_word_embeddings"):
        text = text.with_defaults({"tie_word_embeddings": config.boolean("tie_word_embeddings", default=False)})
    definition = define(text)
    config.finish(ignore=HARMLESS_KEYS | _VISION_KEYS)
    definition = stored_as(definition, lambda name: f"language_model.{name}")
    return replace(definition, model_type="llama4", ignored_tensors=(r"vision_model\..*", r"multi_modal_projector\..*"))


def _read_gguf(_reader: ConfigReader, config: dict[str, Any], _shapes: Shapes) -> None:
    """What llama.cpp takes for granted: the chunk, and that the large model has no norm."""
    config["attention_chunk_size"] = 8192
    config["use_qk_norm"] = config.get("num_local_experts") != 128
    config[EXPERTS_APART] = True


_BLOCK = "model.layers.{layer}.feed_forward"

FAMILY = Family(
    "llama4_text",
    define,
    GgufDialect(
        "llama4",
        keys={
            "feed_forward_length": "intermediate_size_mlp",
            "expert_feed_forward_length": "intermediate_size",
            "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok",
            "interleave_moe_layer_step": "interleave_moe_layer_step",
        },
        tensors={
            **gguf_experts("feed_forward", gate="router"),
            **gguf_shared_experts("feed_forward.shared_expert"),
            **{f"ffn_{part}": f"{_BLOCK}.{part}_proj" for part in ("gate", "up", "down")},
        },
        read=_read_gguf,
    ),
)
SEEING_FAMILY = Family("llama4", define_seeing)
