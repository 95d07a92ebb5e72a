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
class EmbedPosition:
    """out[t] = table[positions[t]]; table [positions the model is made for, out.width]."""

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
class LayerNorm:
    """out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, over the columns of x (Ba et al., 2016)."""

    out: Value
    x: Value
    weight: str
    bias: str | None
    eps: float


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """In place on x: RmsNorm of each head, that is, of each run of ``head_dim`` columns.

    With ``centered`` the head's mean is taken off first, which makes it a LayerNorm without bias. The weight is
    [head_dim], the same for all heads, or [x.width]; None is a weight of ones.
    """

    x: Value
    weight: str | None
    head_dim: int
    eps: float
    centered: bool = False


@dataclass(frozen=True, slots=True)
class Linear:
    """out = x @ weight.T + bias; weight [out.width, x.width]."""

    out: Value
    x: Value
    weight: str
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class HeadLinear:
    """A product per head: out_h = x_h @ weight_h.T for the ``num_heads`` equal runs of columns of out and of x.

    weight [out.width, k] has the rows of all heads, one below the other; of each x_h the first k columns are read.
    """

    out: Value
    x: Value
    weight: str
    num_heads: int


@dataclass(frozen=True, slots=True)
class JoinHeads:
    """out_h = the columns of left_h, then those of right_h, for the ``num_heads`` equal runs of columns of each."""

    out: Value
    left: Value
    right: Value
    num_heads: int


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

    Query head h reads KV head h // (num_heads // num_kv_heads). Scores are s = q . k * scale, and with ``softcap``
    softcap * tanh(s / softcap). A token at position p sees positions of its own sequence up to p: all of them, or with
    ``window`` those from p - window + 1 on, or with ``chunk`` those from p // chunk * chunk on. With ``causal`` False
    it sees all tokens of its sequence, which must be in the batch whole. Keys and values are read as stored.

    ``sinks`` names a vector [num_heads] of scores that take part in the softmax and belong to no position: its weights
    then sum up to less than 1 (attention sinks as gpt-oss learns them).
    """

    out: Value
    q: Value
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: str | None = None
    causal: bool = True


ActivationKind: TypeAlias = Literal["silu", "gelu", "gelu_tanh", "relu"]
"""gelu is x * Phi(x); gelu_tanh its approximation by tanh (Hendrycks and Gimpel, 2016)."""

GateKind: TypeAlias = Literal["silu", "gelu", "gelu_tanh", "clamped_swiglu"]


@dataclass(frozen=True, slots=True)
class Activation:
    """out = activation(x)."""

    out: Value
    x: Value
    activation: ActivationKind


@dataclass(frozen=True, slots=True)
class GatedActivation:
    """out = activation(gate) * up, where gate = x[:, :w] and up = x[:, w:], w = out.width = x.width / 2.

    ``clamped_swiglu`` is gpt-oss's: with g = min(gate, 7) and u = max(-7, min(up, 7)), g * sigmoid(1.702 g) * (u + 1).
    """

    out: Value
    x: Value
    activation: GateKind


@dataclass(frozen=True, slots=True)
class Route:
    """out [T, E]: how much of each of E experts a token takes; 0 for all but its ``top_k``. x [T, E] are their logits.

    Scores are softmax(x) or sigmoid(x). Experts are chosen by score + ``bias`` (a vector [E], if there is one), of
    equal ones those with the lower number. With ``num_groups`` > 1 the experts are equal groups of neighbours, and
    only those of ``top_groups`` groups can be chosen: the groups with the largest best one, or with ``group_score``
    "top2_sum" the largest sum of the best two. The shares of the chosen are their scores, divided by their sum if
    ``normalize``, times ``scale``. (Shazeer et al., 2017; DeepSeek-V3, 2024, for bias and groups.)
    """

    out: Value
    x: Value
    top_k: int
    scores: Literal["softmax", "sigmoid"]
    normalize: bool
    scale: float = 1.0
    bias: str | None = None
    num_groups: int = 1
    top_groups: int = 1
    group_score: Literal["max", "top2_sum"] = "max"


@dataclass(frozen=True, slots=True)
class Experts:
    """out[t] = sum of shares[t, e] * expert_e(x[t]) over the experts e with a share that is not 0, in ascending order.

    shares [T, E]. Expert e is rows e * 2I .. (e + 1) * 2I of ``gate_up`` [E * 2I, x.width], GatedActivation, and rows
    e * D .. (e + 1) * D of ``down`` [E * D, I], D = out.width; with biases [E * 2I] and [E * D] if named. With
    ``scale_input`` an expert gets shares[t, e] * x[t], and what it makes of it counts whole.
    """

    out: Value
    x: Value
    shares: Value
    gate_up: str
    down: str
    activation: GateKind
    gate_up_bias: str | None = None
    down_bias: str | None = None
    scale_input: bool = False


@dataclass(frozen=True, slots=True)
class Add:
    """In place: x += y."""

    x: Value
    y: Value


@dataclass(frozen=True, slots=True)
class AddBias:
    """In place: x += bias, a vector [x.width]."""

    x: Value
    bias: str


@dataclass(frozen=True, slots=True)
class Scale:
    """In place: x *= factor."""

    x: Value
    factor: float


@dataclass(frozen=True, slots=True)
class SigmoidGate:
    """In place: x *= sigmoid(gate); gate [T, 1]."""

    x: Value
    gate: Value


@dataclass(frozen=True, slots=True)
class Logits:
    """The step's result [rows, vocab]: x at the batch's ``logit_rows``, times weight.T. The last operation, once.

    With ``softcap`` a logit l becomes softcap * tanh(l / softcap).
    """

    x: Value
    weight: str
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """The step's result [rows, x.width], of a model without logits: x at the batch's ``logit_rows``. Last, once."""

    x: Value


Op: TypeAlias = (
    Embed
    | EmbedPosition
    | RmsNorm
    | LayerNorm
    | HeadNorm
    | Linear
    | HeadLinear
    | JoinHeads
    | Rope
    | WriteKV
    | Attention
    | Activation
    | GatedActivation
    | Route
    | Experts
    | Add
    | AddBias
    | Scale
    | SigmoidGate
    | Logits
    | HiddenStates
)
