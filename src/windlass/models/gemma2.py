"""Gemma 2 (Gemma Team, 2024)."""

from __future__ import annotations

from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import finish, gated_mlp, project_qkv, read_layer_types
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes
from windlass.models.gemma import DEFAULTS, GemmaNorm, embed, forget_tie, read_gemma_shape, read_gguf_norms
from windlass.models.gguf_config import read_sliding_layers
from windlass.models.rope import read_rope

DEFAULT_WINDOW = 4096


def define(config: ConfigReader) -> ModelDefinition:
    """Gemma, with norms behind attention and MLP too, a window in every other layer, and capped scores and logits."""
    config = config.with_defaults(DEFAULTS)
    shape = read_gemma_shape(config)
    scale = config.number("query_pre_attn_scalar", default=256.0) ** -0.5
    score_cap = config.optional_number("attn_logit_softcapping", default=50.0)
    logit_cap = config.optional_number("final_logit_softcapping", default=30.0)
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


GGUF_TENSORS = {
    "post_attention_norm": "model.layers.{layer}.post_attention_layernorm",
    "ffn_norm": "model.layers.{layer}.pre_feedforward_layernorm",
    "post_ffw_norm": "model.layers.{layer}.post_feedforward_layernorm",
}

_WIDEST = 46


def read_gguf_scale(config: dict[str, Any], widest: int) -> None:
    """Which scale the scores have is not in the file: only the largest model, of ``widest`` layers, has its own."""
    head_width = config["hidden_size"] // config["num_attention_heads"]
    head_dim = config.get("head_dim", head_width)
    config["query_pre_attn_scalar"] = head_width if config["num_hidden_layers"] == widest else head_dim


def _read_gguf(reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    read_gguf_norms(reader, config, shapes)
    read_sliding_layers(reader, config)
    read_gguf_scale(config, _WIDEST)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if reader.has(key):
            config[key] = reader.number(key)


FAMILY = Family(
    "gemma2",
    define,
    GgufDialect("gemma2", keys={"attention.sliding_window": "sliding_window"}, tensors=GGUF_TENSORS, read=_read_gguf),
    mlc=MlcDialect(
        renamed={"position_embedding_base": "rope_theta"},
        fields=(
            "attention_bias",
            "hidden_activation",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "query_pre_attn_scalar",
            "sliding_window",
        ),
        optional=("layer_types",),
        constants={"hidden_activation": "gelu_pytorch_tanh"},
        write=forget_tie,
    ),
)
