"""Phi-3, Phi-3.5 and Phi-4 (Abdin et al., 2024), the dense models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import finish, read_shape, split_qkv, stored_as
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes
from windlass.models.rope import read_rope

_ORIGINAL_LENGTH = 4096

_STORED = {
    "transformer.h.": "model.layers.",
    "transformer.norm.": "model.norm.",
    "transformer.embd.": "model.embed_tokens.",
    ".ln.": ".input_layernorm.",
    ".mixer.qkv_proj.": ".self_attn.qkv_proj.",
    ".mixer.out_proj.": ".self_attn.o_proj.",
}
"""MLC's names of tensors, which the program uses, and Hugging Face's."""


def define(config: ConfigReader) -> ModelDefinition:
    """Llama, whose checkpoints hold fused projections; some rotate only a part of each head (Phi-4-mini)."""
    shape = read_shape(config)
    window = config.optional_integer("sliding_window")
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        config.require(key, False, "biases are not supported here")
    for key in ("full_attn_mod", "interpolate_factor"):
        config.require(key, 1, "this is not supported")
    rope = read_rope(
        config,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        partial=True,
        own_keys=("max_position_embeddings",),
    )
    config.integer(
        "original_max_position_embeddings", default=_ORIGINAL_LENGTH
    )  # counts only where the rotation is scaled
    config.finish(ignore=HARMLESS_KEYS | {"auto_map"})
    b = shape.builder()
    table = b.rope_table(rope.table)

    x = b.embed("transformer.embd", shape.hidden_size)
    for layer in range(shape.num_layers):
        name = f"transformer.h.{layer}"
        h = b.rms_norm(x, f"{name}.ln", shape.rms_norm_eps)
        qkv = b.linear(h, f"{name}.mixer.qkv_proj", shape.query_width + 2 * shape.key_width)
        q, k, v = split_qkv(qkv, shape)
        b.rope(q, table, rotary_dim=rope.rotary_dim)
        b.rope(k, table, rotary_dim=rope.rotary_dim)
        b.write_kv(layer, k, v)
        h = b.attention(q, layer, num_heads=shape.num_heads, window=window)
        b.add(x, b.linear(h, f"{name}.mixer.out_proj", shape.hidden_size))
        h = b.rms_norm(x, f"{name}.post_attention_layernorm", shape.rms_norm_eps)
        h = b.gated_activation(b.linear(h, f"{name}.mlp.gate_up_proj", 2 * shape.intermediate_size))
        b.add(x, b.linear(h, f"{name}.mlp.down_proj", shape.hidden_size))
    x = b.rms_norm(x, "transformer.norm", shape.rms_norm_eps)
    b.logits(x, "transformer.embd" if shape.tied_head else "lm_head")
    context = rope.context_length(shape.max_position_embeddings)
    return stored_as(finish("phi3", b, shape, context_length=context), _stored_name)


def _stored_name(name: str) -> str:
    for mlc, stored in _STORED.items():
        name = name.replace(mlc, stored)
    return name


def _read_mlc(reader: ConfigReader, config: dict[str, Any], context: int) -> int:
    """The scaling of the scores depends on the length that the model was made for, not on the one that is used."""
    scaling = config.get("rope_scaling")
    if isinstance(scaling, Mapping):
        longest = reader.integer("max_position_embeddings")
        original = reader.integer("original_max_position_embeddings")
        config["rope_scaling"] = {"factor": longest / original, **scaling}
    return context


def _write_mlc(mlc: dict[str, Any], hf: Mapping[str, Any]) -> None:
    """MLC writes the two lengths beside the scaling and in it."""
    said = {**(hf.get("rope_parameters") or hf.get("rope_scaling") or {}), **hf}
    lengths = {
        "max_position_embeddings": hf["max_position_embeddings"],
        "original_max_position_embeddings": said.get("original_max_position_embeddings", _ORIGINAL_LENGTH),
    }
    mlc.update(lengths, partial_rotary_factor=said.get("partial_rotary_factor", 1.0))
    scaling = mlc["rope_scaling"]
    if scaling is not None:
        scaling.pop("partial_rotary_factor", None)
        scaling["rope_type"] = "longrope"
        mlc["rope_scaling"] = {**scaling, "type": "longrope", **lengths}


def _read_gguf(reader: ConfigReader, config: dict[str, Any], _shapes: Shapes) -> None:
    window = reader.integer("attention.sliding_window", default=0, minimum=0)
    config["sliding_window"] = window or None
    if reader.has("rope.dimension_count"):
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        config["partial_rotary_factor"] = reader.integer("rope.dimension_count") / head_dim


FAMILY = Family(
    "phi3",
    define,
    GgufDialect(
        "phi3",
        tensors={
            "attn_qkv": "model.layers.{layer}.self_attn.qkv_proj",
            "ffn_up": "model.layers.{layer}.mlp.gate_up_proj",
        },
        read=_read_gguf,
    ),
    mlc=MlcDialect(
        renamed={"position_embedding_base": "rope_theta"},
        fields=("tie_word_embeddings", "rope_scaling"),
        optional=("sliding_window",),
        constants={"model_type": "phi3"},
        read=_read_mlc,
        write=_write_mlc,
    ),
)
