"""Gemma (Gemma Team, 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import Shape, finish, gated_mlp, project_qkv, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes
from windlass.models.rope import read_rope
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import Value

# Gemma's first configurations say "gelu" and mean its approximation by tanh.
_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu_new", "gelu")

DEFAULTS: dict[str, Any] = {"head_dim": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
"""What published configurations may leave out."""


class GemmaNorm:
    """Gemma's norm: the stored weight is the distance from 1, so 1 is added, unless the file has done that already."""

    def __init__(self, config: ConfigReader, b: ProgramBuilder, eps: float) -> None:
        # No config.json has this key: it is how a GGUF file's metadata are translated.
        self._plus = config.number("norm_weight_offset", default=1.0, above=-1.0)
        self._b = b
        self._eps = eps

    def __call__(self, x: Value, name: str) -> Value:
        """``x``, normalized."""
        return self._b.rms_norm(x, name, self._eps, plus=self._plus)

    def heads(self, x: Value, name: str) -> None:
        """Normalize each head of ``x``, in place."""
        self._b.head_norm(x, name, self._eps, plus=self._plus)


def read_gemma_shape(config: ConfigReader) -> Shape:
    """Read the sizes, and check what no Gemma has otherwise."""
    config.choice("hidden_activation", _ACTIVATIONS, default=_ACTIVATIONS[0])
    config.require("attention_bias", False, "no Gemma has biases")
    config.require("use_bidirectional_attention", False, "attention that is not causal is not supported here")
    return read_shape(config, activations=_ACTIVATIONS)


def embed(b: ProgramBuilder, name: str, shape: Shape) -> Value:
    """The tokens' embeddings, times the square root of their width."""
    x = b.embed(name, shape.hidden_size)
    b.scale(x, math.sqrt(shape.hidden_size))
    return x


def define(config: ConfigReader) -> ModelDefinition:
    """Llama, with scaled embeddings, norms around 1, and GELU."""
    config = config.with_defaults(DEFAULTS)
    shape = read_gemma_shape(config)
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
        h = b.attention(q, layer, num_heads=shape.num_heads)
        b.add(x, b.linear(h, f"{name}.self_attn.o_proj", shape.hidden_size))
        h = norm(x, f"{name}.post_attention_layernorm")
        b.add(x, gated_mlp(b, h, f"{name}.mlp", shape.intermediate_size, kind="gelu_tanh"))
    b.logits(norm(x, "model.norm"), "model.embed_tokens" if shape.tied_head else "lm_head")
    return finish("gemma", b, shape, context_length=rope.context_length(shape.max_position_embeddings))


def forget_tie(mlc: dict[str, Any], _hf: Mapping[str, Any]) -> None:
    """MLC has no field for what is so in every Gemma."""
    mlc["tie_word_embeddings"] = None


def read_gguf_norms(_reader: ConfigReader, config: dict[str, Any], _shapes: Shapes) -> None:
    """In GGUF files 1 has been added to the norms' weights already."""
    config["norm_weight_offset"] = 0.0


FAMILY = Family(
    "gemma",
    define,
    GgufDialect("gemma", read=read_gguf_norms),
    mlc=MlcDialect(
        renamed={"position_embedding_base": "rope_theta"},
        fields=("attention_bias", "hidden_activation"),
        constants={"hidden_activation": "gelu_pytorch_tanh"},
        write=forget_tie,
    ),
)
