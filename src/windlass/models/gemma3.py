"""Gemma 3 (Gemma Team, 2025): the models for text, and what writes the text of those that see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import finish, gated_mlp, read_layer_types, stored_as
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes
from windlass.models.gemma import DEFAULTS, GemmaNorm, embed, read_gemma_shape, read_gguf_norms
from windlass.models.gemma2 import DEFAULT_WINDOW, GGUF_TENSORS, read_gguf_scale
from windlass.models.gguf_config import read_sliding_layers
from windlass.models.rope import read_layer_ropes

THETA = 1_000_000.0

PREFIX = "language_model."
"""What the tensors of the text model begin with in a model that sees, and in every MLC directory."""

_DEFAULTS: dict[str, Any] = {
    **DEFAULTS,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}

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
        return _define("gemma3", config)  # how an MLC directory is read: it has nothing but the text model
    config.require("tie_word_embeddings", True, "a Gemma 3 that sees shares its embedding with the head")
    definition = _define("gemma3", text)
    config.finish(ignore=HARMLESS_KEYS | _VISION_KEYS)
    seeing = (r"vision_tower\..*", r"multi_modal_projector\..*", r"language_model\.lm_head\.weight")
    return replace(definition, ignored_tensors=(*definition.ignored_tensors, *seeing))


def _define(model_type: str, config: ConfigReader) -> ModelDefinition:
    """Gemma 2, with norms on queries and keys instead of caps, and angles of their own where a window slides."""
    config = config.with_defaults(_DEFAULTS)
    shape = read_gemma_shape(config)
    scale = config.number("query_pre_attn_scalar", default=256.0) ** -0.5
    score_cap, logit_cap = (config.optional_number(f"{place}_logit_softcapping") for place in ("attn", "final"))
    window = config.optional_integer("sliding_window", default=DEFAULT_WINDOW)
    pattern = config.integer("sliding_window_pattern", default=6)
    slides = read_layer_types(config, [(layer + 1) % pattern != 0 for layer in range(shape.num_layers)])
    ropes = read_layer_ropes(
        config,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        theta=THETA,
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


_MLC_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_scaling",
    "query_pre_attn_scalar",
)
_MLC_KWARGS = (
    "rope_local_base_freq",
    "rope_parameters",
    "sliding_window_pattern",
    "layer_types",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""What MLC has no fields for."""


def _read_mlc(_reader: ConfigReader, config: dict[str, Any], context: int) -> int:
    """MLC keeps the text model's fields together, and those that it has no use for once more apart (``kwargs``)."""
    text = config.pop("text_config", None)
    if isinstance(text, Mapping):
        kwargs = text.get("kwargs")
        config.update({**(kwargs if isinstance(kwargs, Mapping) else {}), **text})
    for key in (*_VISION_KEYS, "kwargs", "is_text_model"):
        config.pop(key, None)
    window = config.pop("sliding_window_size", None)
    if type(window) is int and window > 0:
        config["sliding_window"] = window
    if config.get("rope_scaling") == 0:
        del config["rope_scaling"]  # MLC's default
    return context


def _write_mlc(mlc: dict[str, Any], hf: Mapping[str, Any]) -> None:
    text = hf.get("text_config") or hf
    values = {**_DEFAULTS, "query_pre_attn_scalar": 256, **text}
    window = values.get("sliding_window", DEFAULT_WINDOW)
    fields = {key: values[key] for key in _MLC_FIELDS if key in values}
    fields |= {
        "attention_bias": False,
        "hidden_activation": "gelu_pytorch_tanh",
        "position_embedding_base": values.get("rope_theta", THETA),
        "sliding_window_size": window,
        "context_window_size": mlc["context_window_size"],
        "prefill_chunk_size": mlc["prefill_chunk_size"],
        "kwargs": {key: values[key] for key in _MLC_KWARGS if values.get(key) is not None},
    }
    runtime = {key: mlc[key] for key in ("context_window_size", "prefill_chunk_size", "tensor_parallel_shards")}
    mlc.clear()
    mlc.update(runtime, text_config=fields, vocab_size=values["vocab_size"], max_batch_size=1)
    mlc.update(sliding_window_size=-1 if window is None else window, is_text_model="text_config" not in hf)


_MLC = MlcDialect(
    renamed={"position_embedding_base": "rope_theta"}, fields=("is_text_model",), read=_read_mlc, write=_write_mlc
)

_WIDEST = 62


def _read_gguf(reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    read_gguf_norms(reader, config, shapes)
    read_sliding_layers(reader, config)
    read_gguf_scale(config, _WIDEST)
    config["sliding_window"] = reader.optional_integer("attention.sliding_window")
    if reader.has("rope.freq_base_swa"):
        config["rope_local_base_freq"] = reader.number("rope.freq_base_swa")
    if reader.has("final_logit_softcapping"):
        config["final_logit_softcapping"] = reader.number("final_logit_softcapping")


TEXT_FAMILY = Family("gemma3_text", define_text, GgufDialect("gemma3", tensors=GGUF_TENSORS, read=_read_gguf), _MLC)
FAMILY = Family("gemma3", define, mlc=_MLC)
