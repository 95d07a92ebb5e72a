"""StableLM 2 and StableLM 3B (Bellagente et al., 2024; Tow et al., 2023)."""

from __future__ import annotations

from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import finish, gated_mlp, project_qkv, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes
from windlass.models.rope import read_rope


def define(config: ConfigReader) -> ModelDefinition:
    """Llama with layer norms and a part of each head rotated; the 12B has norms per head and feeds both halves at once.

    The weights of the norms of the heads are single tensors, unless ``stacked_head_norms`` is true.
    """
    config = config.renamed({"layer_norm_eps": "rms_norm_eps"}).with_defaults({"rms_norm_eps": 1e-5})
    if not config.has("rope_parameters"):
        config = config.with_defaults({"partial_rotary_factor": 0.25})
    shape = read_shape(config)
    bias = config.boolean("use_qkv_bias", default=False)
    head_norm = config.boolean("qk_layernorm", default=False)
    stacked = config.boolean("stacked_head_norms", default=False)
    parallel = config.boolean("use_parallel_residual", default=False)
    rope = read_rope(
        config,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        partial=True,
    )
    config.finish(ignore=HARMLESS_KEYS)
    b = shape.builder()
    table = b.rope_table(rope.table)
    x = b.embed("model.embed_tokens", shape.hidden_size)
    for layer in range(shape.num_layers):
        name = f"model.layers.{layer}"
        normed = b.layer_norm(x, f"{name}.input_layernorm", shape.rms_norm_eps)
        q, k, v = project_qkv(b, normed, f"{name}.self_attn", shape, bias=bias)
        for value, letter, heads in ((q, "q", shape.num_heads), (k, "k", shape.num_kv_heads)):
            if head_norm:
                norm = f"{name}.self_attn.{letter}_layernorm"
                parts = None if stacked else [f"{norm}.norms.{head}" for head in range(heads)]
                b.head_norm(value, norm, shape.rms_norm_eps, centered=True, per_head=True, parts=parts)
            b.rope(value, table, rotary_dim=rope.rotary_dim)
        b.write_kv(layer, k, v)
        h = b.attention(q, layer, num_heads=shape.num_heads)
        attended = b.linear(h, f"{name}.self_attn.o_proj", shape.hidden_size)
        if parallel:
            h = gated_mlp(b, normed, f"{name}.mlp", shape.intermediate_size)
            b.add(x, attended)
        else:
            b.add(x, attended)
            h = gated_mlp(
                b,
                b.layer_norm(x, f"{name}.post_attention_layernorm", shape.rms_norm_eps),
                f"{name}.mlp",
                shape.intermediate_size,
            )
        b.add(x, h)
    x = b.layer_norm(x, "model.norm", shape.rms_norm_eps)
    b.logits(x, "model.embed_tokens" if shape.tied_head else "lm_head")
    return finish("stablelm", b, shape, context_length=rope.context_length(shape.max_position_embeddings))


def _read_gguf(reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    config["rms_norm_eps"] = reader.number("attention.layer_norm_epsilon")
    head_dim = reader.integer("embedding_length") // reader.integer("attention.head_count")
    config["partial_rotary_factor"] = reader.integer("rope.dimension_count") / head_dim
    config["use_parallel_residual"] = "model.layers.0.post_attention_layernorm.weight" not in shapes
    reader.boolean("use_parallel_residual", default=False)  # written for all models; the tensors tell
    config["use_qkv_bias"] = "model.layers.0.self_attn.q_proj.bias" in shapes
    config["qk_layernorm"] = "model.layers.0.self_attn.q_layernorm.weight" in shapes
    config["stacked_head_norms"] = True


FAMILY = Family(
    "stablelm",
    define,
    GgufDialect(
        "stablelm",
        tensors={
            "attn_q_norm": "model.layers.{layer}.self_attn.q_layernorm",
            "attn_k_norm": "model.layers.{layer}.self_attn.k_layernorm",
        },
        read=_read_gguf,
    ),
    MlcDialect(
        fields=("layer_norm_eps", "partial_rotary_factor", "use_qkv_bias"),
        optional=("qk_layernorm", "use_parallel_residual"),
    ),
)
