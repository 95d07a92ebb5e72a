"""Layers that several families have, beyond those of ``decoder.py``."""

from __future__ import annotations

from windlass.models.config import ConfigReader
from windlass.models.decoder import Shape
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import ActivationKind, Value
from windlass.program.program import Part

_ACTIVATIONS: dict[str, ActivationKind] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def read_activation(config: ConfigReader, *, default: str, key: str = "hidden_act") -> ActivationKind:
    """Read the activation of an MLP without gates, under any of Hugging Face's names."""
    return _ACTIVATIONS[config.choice(key, tuple(_ACTIVATIONS), default=default)]


def plain_mlp(
    b: ProgramBuilder,
    x: Value,
    shape: Shape,
    kind: ActivationKind,
    *,
    up: str,
    down: str,
    bias: bool = True,
    transposed: bool = False,
) -> Value:
    """down(activation(up(x))), with the names of the two products; ``transposed``: so their weights are stored."""
    up_parts, down_parts = [Part(up, transposed=transposed)], [Part(down, transposed=transposed)]
    h = b.linear(x, up, shape.intermediate_size, parts=up_parts, bias=bias)
    return b.linear(b.activation(h, kind), down, shape.hidden_size, parts=down_parts, bias=bias)
