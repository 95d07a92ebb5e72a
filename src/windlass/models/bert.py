"""BERT (Devlin et al., 2019), for embeddings."""

from __future__ import annotations

from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import read_shape, split_qkv
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, Shapes
from windlass.models.layers import plain_mlp, read_activation
from windlass.program.pooling import Pooling
from windlass.program.program import Part, RowOrder

DEFAULT_POOLING = Pooling("mean", normalize=False)
"""Where no file says anything; what sentence-transformers does then."""


def define(config: ConfigReader) -> ModelDefinition:
    """An encoder: every token sees all others, norms come after the sums, and all tokens are of the first type."""
    config = config.renamed({"layer_norm_eps": "rms_norm_eps"}).with_defaults({"rms_norm_eps": 1e-12})
    kind = read_activation(config, default="gelu")
    shape = read_shape(config, activations=None)
    config.choice("position_embedding_type", ("absolute",), default="absolute")
    config.integer("type_vocab_size", default=2)
    config.finish(ignore=HARMLESS_KEYS | {"gradient_checkpointing", "pooler_fc_size", "add_pooling_layer"})
    b, eps, width = shape.builder(), shape.rms_norm_eps, shape.hidden_size
    x = b.embed("embeddings.word_embeddings", width)
    b.add(x, b.embed_position("embeddings.position_embeddings", shape.max_position_embeddings, width))
    first_type = Part("embeddings.token_type_embeddings.weight", RowOrder(1, ((0, width, 1),)))
    b.add_bias(x, "embeddings.token_type_embeddings.weight", first_type)
    x = b.layer_norm(x, "embeddings.LayerNorm", eps)
    for layer in range(shape.num_layers):
        name = f"encoder.layer.{layer}"
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        fused = b.linear(x, f"{name}.attention.self.qkv", 3 * width, parts=parts, bias=True)
        q, k, v = split_qkv(fused, shape)
        b.write_kv(layer, k, v)
        h = b.attention(q, layer, num_heads=shape.num_heads, causal=False)
        h = b.linear(h, f"{name}.attention.output.dense", width, bias=True)
        b.add(h, x)
        x = b.layer_norm(h, f"{name}.attention.output.LayerNorm", eps)
        h = plain_mlp(b, x, shape, kind, up=f"{name}.intermediate.dense", down=f"{name}.output.dense")
        b.add(h, x)
        x = b.layer_norm(h, f"{name}.output.LayerNorm", eps)
    b.hidden_states(x)
    return ModelDefinition(
        model_type="bert",
        program=b.build(),
        context_length=shape.max_position_embeddings,
        vocab_size=shape.vocab_size,
        hidden_size=width,
        intermediate_size=shape.intermediate_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        ignored_tensors=(r"embeddings\.position_ids", r"pooler\.dense\.(weight|bias)", r"cls\..*"),
        stored_prefixes=(("bert.", ""),),
        pooling=DEFAULT_POOLING,
        needs_whole_prompts=True,
    )


def _read_gguf(reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    config["rms_norm_eps"] = reader.number("attention.layer_norm_epsilon")
    if reader.boolean("attention.causal", default=True):
        raise reader.error("attention.causal", "is true, which is not supported for BERT")
    types = shapes.get("embeddings.token_type_embeddings.weight")
    if types is not None:
        config["type_vocab_size"] = types[0]
    del config["tie_word_embeddings"]


_LAYER = "encoder.layer.{layer}."

FAMILY = Family(
    "bert",
    define,
    GgufDialect(
        "bert",
        tensors={
            "token_embd": "embeddings.word_embeddings",
            "token_types": "embeddings.token_type_embeddings",
            "position_embd": "embeddings.position_embeddings",
            "token_embd_norm": "embeddings.LayerNorm",
            "attn_q": _LAYER + "attention.self.query",
            "attn_k": _LAYER + "attention.self.key",
            "attn_v": _LAYER + "attention.self.value",
            "attn_output": _LAYER + "attention.output.dense",
            "attn_output_norm": _LAYER + "attention.output.LayerNorm",
            "ffn_up": _LAYER + "intermediate.dense",
            "ffn_down": _LAYER + "output.dense",
            "layer_output_norm": _LAYER + "output.LayerNorm",
        },
        read=_read_gguf,
    ),
)
