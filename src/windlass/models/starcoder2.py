"""StarCoder2 (Lozhkov et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import finish, project_qkv, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes
from windlass.models.layers import plain_mlp, read_activation
from windlass.models.rope import read_rope


def define(config: ConfigReader) -> ModelDefinition:
    """Layer norms, grouped queries with a sliding window if one is given, MLPs without gates, biases everywhere."""
    config = config.renamed({"norm_epsilon": "rms_norm_eps"}).with_defaults(
        {"tie_word_embeddings": True, "num_key_value_heads": 2}
    )
    kind = read_activation(config, default="gelu_pytorch_tanh")
    shape = read_shape(config, activations=None)
    bias = config.boolean("use_bias", default=True)
    window = config.integer("sliding_window") if config.has("sliding_window") else None
    rope = read_rope(config, head_dim=shape.head_dim, max_position_embeddings=shape.max_position_embeddings)
    config.finish(ignore=HARMLESS_KEYS | {"sliding_window", "residual_dropout", "embedding_dropout", "mlp_type"})
    b = shape.builder()
    table = b.rope_table(rope.table)
    x = b.embed("model.embed_tokens", shape.hidden_size)
    for layer in range(shape.num_layers):
        name = f"model.layers.{layer}"
        h = b.layer_norm(x, f"{name}.input_layernorm", shape.rms_norm_eps)
        q, k, v = project_qkv(b, h, f"{name}.self_attn", shape, fused="wqkv_pack", bias=bias)
        b.rope(q, table)
        b.rope(k, table)
        b.write_kv(layer, k, v)
        h = b.attention(q, layer, num_heads=shape.num_heads, window=window)
        b.add(x, b.linear(h, f"{name}.self_attn.o_proj", shape.hidden_size, bias=bias))
        h = b.layer_norm(x, f"{name}.post_attention_layernorm", shape.rms_norm_eps)
        up, down = f"{name}.mlp.c_fc", f"{name}.mlp.c_proj"
        b.add(x, plain_mlp(b, h, shape, kind, up=up, down=down, bias=bias))
    x = b.layer_norm(x, "model.norm", shape.rms_norm_eps)
    b.logits(x, "model.embed_tokens" if shape.tied_head else "lm_head")
    context = rope.context_length(shape.max_position_embeddings)
    return finish("starcoder2", b, shape, context_length=context)


def _read_gguf(reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    config["rms_norm_eps"] = reader.number("attention.layer_norm_epsilon")
    config["use_bias"] = "model.layers.0.mlp.c_fc.bias" in shapes


def _write_mlc(mlc: dict[str, Any], hf: Mapping[str, Any]) -> None:
    del mlc["tie_word_embeddings"]
    # MLC has no window for this family; it is ours alone.
    mlc["sliding_window"] = hf.get("sliding_window")


FAMILY = Family(
    "starcoder2",
    define,
    GgufDialect(
        "starcoder2",
        tensors={
            "ffn_up": "model.layers.{layer}.mlp.c_fc",
            "ffn_down": "model.layers.{layer}.mlp.c_proj",
        },
        read=_read_gguf,
    ),
    MlcDialect(
        fields=("hidden_act", "norm_epsilon", "use_bias", "use_cache", "bos_token_id", "eos_token_id"),
        untied=True,
        write=_write_mlc,
    ),
)
