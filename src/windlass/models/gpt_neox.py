"""GPT-NeoX and Pythia (Black et al., 2022; Biderman et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import finish, read_shape, split_qkv
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes
from windlass.models.layers import plain_mlp, read_activation
from windlass.models.rope import read_rope
from windlass.program.program import Part, RowOrder

_NAMES = {"layer_norm_eps": "rms_norm_eps", "rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}


def define(config: ConfigReader) -> ModelDefinition:
    """Layer norms, a part of each head rotated, MLPs without gates, and both halves of a layer fed with its input.

    Checkpoints have queries, keys and values head by head, unless ``fused_by_head`` is false.
    """
    config = config.renamed(_NAMES)
    if not config.has("rope_parameters"):
        config = config.with_defaults({"partial_rotary_factor": 0.25})
    kind = read_activation(config, default="gelu")
    shape = read_shape(config, activations=None)
    parallel = config.boolean("use_parallel_residual", default=True)
    bias = config.boolean("attention_bias", default=True)
    by_head = config.boolean("fused_by_head", default=True)
    rope = read_rope(
        config,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        partial=True,
    )
    config.finish(ignore=HARMLESS_KEYS)
    b = shape.builder()
    table = b.rope_table(rope.table)
    size = shape.head_dim
    x = b.embed("gpt_neox.embed_in", shape.hidden_size)
    for layer in range(shape.num_layers):
        name = f"gpt_neox.layers.{layer}"
        h = b.layer_norm(x, f"{name}.input_layernorm", shape.rms_norm_eps)
        fused = f"{name}.attention.query_key_value"
        parts = [Part(fused)]
        if by_head:
            orders = [RowOrder(shape.num_heads, ((i * size, (i + 1) * size, 1),)) for i in range(3)]
            parts = [Part(fused, order, num_rows=shape.hidden_size) for order in orders]
        q, k, v = split_qkv(b.linear(h, fused, 3 * shape.hidden_size, parts=parts, bias=bias), shape)
        b.rope(q, table, rotary_dim=rope.rotary_dim)
        b.rope(k, table, rotary_dim=rope.rotary_dim)
        b.write_kv(layer, k, v)
        h = b.attention(q, layer, num_heads=shape.num_heads)
        attended = b.linear(h, f"{name}.attention.dense", shape.hidden_size, bias=bias)
        if not parallel:
            b.add(x, attended)
        h = b.layer_norm(x, f"{name}.post_attention_layernorm", shape.rms_norm_eps)
        up, down = f"{name}.mlp.dense_h_to_4h", f"{name}.mlp.dense_4h_to_h"
        h = plain_mlp(b, h, shape, kind, up=up, down=down)
        if parallel:
            b.add(x, attended)
        b.add(x, h)
    x = b.layer_norm(x, "gpt_neox.final_layer_norm", shape.rms_norm_eps)
    b.logits(x, "gpt_neox.embed_in" if shape.tied_head else "embed_out")
    return finish(
        "gpt_neox",
        b,
        shape,
        context_length=rope.context_length(shape.max_position_embeddings),
        ignored_tensors=(
            r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
            r"embed_out\.weight",
        )[: 2 if shape.tied_head else 1],
    )


def _read_gguf(reader: ConfigReader, config: dict[str, Any], _shapes: Shapes) -> None:
    config["rms_norm_eps"] = reader.number("attention.layer_norm_epsilon")
    config["use_parallel_residual"] = reader.boolean("use_parallel_residual", default=True)
    head_dim = reader.integer("embedding_length") // reader.integer("attention.head_count")
    config["partial_rotary_factor"] = reader.integer("rope.dimension_count") / head_dim
    config["fused_by_head"] = False


def _write_mlc(mlc: dict[str, Any], hf: Mapping[str, Any]) -> None:
    parameters = hf.get("rope_parameters") or {}
    mlc["rotary_pct"] = hf.get("rotary_pct") or parameters.get("partial_rotary_factor") or 0.25
    mlc["rope_theta"] = hf.get("rotary_emb_base") or parameters.get("rope_theta") or 10000


FAMILY = Family(
    "gpt_neox",
    define,
    GgufDialect(
        "gptneox",
        tensors={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
            "attn_norm": "gpt_neox.layers.{layer}.input_layernorm",
            "attn_qkv": "gpt_neox.layers.{layer}.attention.query_key_value",
            "attn_output": "gpt_neox.layers.{layer}.attention.dense",
            "ffn_norm": "gpt_neox.layers.{layer}.post_attention_layernorm",
            "ffn_up": "gpt_neox.layers.{layer}.mlp.dense_h_to_4h",
            "ffn_down": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
        },
        read=_read_gguf,
    ),
    MlcDialect(
        renamed={"position_embedding_base": "rope_theta"},
        fields=("use_parallel_residual", "layer_norm_eps", "rotary_pct"),
        optional=("hidden_act",),
        constants={"ffn_out_dtype": "float32"},
        write=_write_mlc,
    ),
)
