"""The operations a model is made of.

A program works on values: float32 matrices with one row per token of the batch. A ``Value`` is a range of columns of a
numbered buffer; operations marked "in place" change the columns they name and no others, every other operation fills a
buffer of its own that nothing wrote before. Executors keep the buffers; a program only numbers them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Value:
    """Columns ``offset .. offset + width`` of buffer ``buffer``; shape [T, width]."""

    buffer: int
    offset: int
    width: int

    def columns(self, start: int, width: int) -> Value:
        """Return a narrower view, ``width`` columns from column ``start`` of this one."""
        if start < 0 or width <= 0 or start + width > self.width:
            raise ValueError(f"columns {start}..{start + width} do not lie in a value of width {self.width}")
        return Value(self.buffer, self.offset + start, width)


@dataclass(frozen=True, slots=True)
class Embed:
    """out[t] = table[token_ids[t]]."""

    out: Value
    table: str


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """out = x / sqrt(mean(x^2) + eps) * weight, the mean over the columns of x (Zhang and Sennrich, 2019)."""

    out: Value
    x: Value
    weight: str
    eps: float


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """In place on x: RmsNorm of each head, that is, of each run of ``head_dim`` columns, by one weight [head_dim]."""

    x: Value
    weight: str
    head_dim: int
    eps: float


@dataclass(frozen=True, slots=True)
class Linear:
    """out = x @ weight.T + bias; weight [out.width, x.width]."""

    out: Value
    x: Value
    weight: str
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class Rope:
    """In place on x: rotate each head by the token's position, half-rotation style (Su et al., 2021; GPT-NeoX layout).

    With (cos, sin) the rows of ``Program.ropes[table]`` at the token's position and r = rotary_dim / 2, columns i and
    i + r (i < r) of each head become x_i cos_i - x_{i+r} sin_i and x_{i+r} cos_i + x_i sin_i; columns from rotary_dim
    on stay.
    """

    x: Value
    table: int
    head_dim: int
    rotary_dim: int


@dataclass(frozen=True, slots=True)
class WriteKV:
    """Store the tokens' keys and values, each [T, num_kv_heads * head_dim], in the KV cache of ``layer``."""

    layer: int
    k: Value
    v: Value


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention of q [T, num_heads * head_dim] over the KV cache of ``layer``, after this batch's WriteKV.

    Query head h reads KV head h // (num_heads // num_kv_heads). Scores are q . k * scale. A token at position p sees
    positions max(0, p - window + 1) .. p of its own sequence, all up to p when ``window`` is None. Keys and values
    are read as stored.
    """

    out: Value
    q: Value
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None


@dataclass(frozen=True, slots=True)
class GatedActivation:
    """out = activation(x[:, :w]) * x[:, w:], w = out.width = x.width / 2."""

    out: Value
    x: Value
    activation: Literal["silu"]


@dataclass(frozen=True, slots=True)
class Add:
    """In place: x += y."""

    x: Value
    y: Value


@dataclass(frozen=True, slots=True)
class Logits:
    """The step's result [rows, vocab]: x at the batch's ``logit_rows``, times weight.T. The last operation, once."""

    x: Value
    weight: str


Op: TypeAlias = Embed | RmsNorm | HeadNorm | Linear | Rope | WriteKV | Attention | GatedActivation | Add | Logits
