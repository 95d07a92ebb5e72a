"""The language model files are written in: one method per operation, and a program at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from windlass.program.ops import (
    Activation,
    ActivationKind,
    Add,
    AddBias,
    Attention,
    Embed,
    EmbedPosition,
    Experts,
    GatedActivation,
    GateKind,
    HeadLinear,
    HeadNorm,
    HiddenStates,
    JoinHeads,
    LayerNorm,
    Linear,
    Logits,
    Op,
    RmsNorm,
    Rope,
    Route,
    Scale,
    SigmoidGate,
    Value,
    WriteKV,
)
from windlass.program.program import Part, Program, RopeTable, WeightSpec


class ProgramError(ValueError):
    """A model file wrote a program that breaks an invariant of ``Program``: a bug of that file, not of a user's."""


class ProgramBuilder:
    """Numbers the buffers, declares the weights and checks the invariants of ``Program`` as operations are added.

    Weight names are given without their last part: ``linear(x, "lm_head", n)`` declares ``lm_head.weight``, and
    ``lm_head.bias`` when it has one. ``parts`` are the Hugging Face tensors to stack, their names in the same short
    form; by default there is one of the weight's own name. Methods that fill a buffer return it; those that work in
    place return None.
    """

    def __init__(self, *, num_layers: int, num_kv_heads: int, head_dim: int, vocab_size: int) -> None:
        for name, size in (
            ("num_layers", num_layers),
            ("num_kv_heads", num_kv_heads),
            ("head_dim", head_dim),
            ("vocab_size", vocab_size),
        ):
            if size < 1:
                raise ProgramError(f"{name} is {size}, which must be at least 1")
        self._num_layers = num_layers
        self._num_kv_heads = num_kv_heads
        self._head_dim = head_dim
        self._vocab_size = vocab_size
        self._ops: list[Op] = []
        self._weights: dict[str, WeightSpec] = {}
        self._buffer_widths: list[int] = []
        self._ropes: list[RopeTable] = []
        self._written_layers: set[int] = set()
        self._attended_layers: set[int] = set()

    def rope_table(self, table: RopeTable) -> int:
        """Add a rotary embedding to the program and return the number that ``rope`` takes."""
        self._ropes.append(table)
        return len(self._ropes) - 1

    def embed(self, name: str, width: int) -> Value:
        """The tokens' rows of the embedding table [vocab_size, width]."""
        table = self._declare(f"{name}.weight", (self._vocab_size, width), role="embedding")
        out = self._allocate(width)
        self._append(Embed(out, table))
        return out

    def embed_position(self, name: str, positions: int, width: int) -> Value:
        """The rows of the tokens' positions in a table [positions, width]."""
        table = self._declare(f"{name}.weight", (positions, width), role="embedding")
        out = self._allocate(width)
        self._append(EmbedPosition(out, table))
        return out

    def rms_norm(self, x: Value, name: str, eps: float, *, plus: float = 0.0) -> Value:
        """Root mean square layer norm over the whole width of ``x``; ``plus`` is added to the stored weight."""
        self._check_read(x)
        _check_eps(eps)
        weight = self._declare_vector(f"{name}.weight", x.width, plus=plus)
        out = self._allocate(x.width)
        self._append(RmsNorm(out, x, weight, eps))
        return out

    def layer_norm(self, x: Value, name: str, eps: float, *, bias: bool = True) -> Value:
        """Layer norm over the whole width of ``x``."""
        self._check_read(x)
        _check_eps(eps)
        weight = self._declare_vector(f"{name}.weight", x.width)
        bias_name = self._declare_vector(f"{name}.bias", x.width) if bias else None
        out = self._allocate(x.width)
        self._append(LayerNorm(out, x, weight, bias_name, eps))
        return out

    def head_norm(
        self,
        x: Value,
        name: str | None,
        eps: float,
        *,
        centered: bool = False,
        parts: Sequence[str | Part] | None = None,
        per_head: bool = False,
        plus: float = 0.0,
    ) -> None:
        """Root mean square norm of each head, in place; centered: layer norm.

        One weight [head_dim] for all heads, or one [x.width] with ``per_head``, or none when ``name`` is None.
        """
        self._check_heads(x)
        _check_eps(eps)
        weight = None
        if name is not None:
            width = x.width if per_head else self._head_dim
            weight = self._declare_vector(f"{name}.weight", width, parts=_with_suffix(parts, "weight"), plus=plus)
        self._append(HeadNorm(x, weight, self._head_dim, eps, centered))

    def linear(
        self,
        x: Value,
        name: str,
        out_features: int,
        *,
        parts: Sequence[str | Part] | None = None,
        bias: bool = False,
        role: Literal["linear", "router"] = "linear",
        mlc_as_stored: bool = False,
    ) -> Value:
        """``x`` times a weight [out_features, x.width] transposed, plus a bias [out_features] if it has one.

        ``mlc_as_stored`` says of both what ``WeightSpec`` says.
        """
        self._check_read(x)
        counts = [part.num_rows for part in _as_parts(parts) or ()]
        known = [count for count in counts if count is not None]
        if known and (len(known) < len(counts) or sum(known) != out_features):
            raise ProgramError(f"{name}: parts of {counts} rows do not make up {out_features}")
        weight = self._declare(
            f"{name}.weight",
            (out_features, x.width),
            parts=_with_suffix(parts, "weight"),
            role=role,
            mlc_as_stored=mlc_as_stored,
        )
        bias_name = None
        if bias:
            bias_parts = _with_suffix(parts, "bias")
            if bias_parts is not None:
                bias_parts = tuple(replace(part, transposed=False) for part in bias_parts)
            bias_name = self._declare(
                f"{name}.bias", (out_features,), parts=bias_parts, role="plain", mlc_as_stored=mlc_as_stored
            )
        out = self._allocate(out_features)
        self._append(Linear(out, x, weight, bias_name))
        return out

    def head_linear(
        self,
        x: Value,
        name: str,
        *,
        num_heads: int,
        in_features: int,
        out_features: int,
        parts: Sequence[str | Part] | None = None,
    ) -> Value:
        """A product per head: the first ``in_features`` columns of each head of ``x`` with a weight of its own.

        The weight is [num_heads * out_features, in_features], and the result num_heads * out_features wide. It and its
        parts have whole names.
        """
        self._check_read(x)
        if x.width % num_heads or not 1 <= in_features <= x.width // num_heads:
            raise ProgramError(f"{num_heads} heads of width {x.width} together do not have {in_features} columns each")
        shape = (num_heads * out_features, in_features)
        weight = self._declare(name, shape, parts=_as_parts(parts), role="plain", experts=num_heads)
        out = self._allocate(shape[0])
        self._append(HeadLinear(out, x, weight, num_heads))
        return out

    def join_heads(self, left: Value, right: Value, *, num_heads: int) -> Value:
        """Per head the columns of ``left``, then those of ``right``."""
        for value in (left, right):
            self._check_read(value)
            if value.width % num_heads:
                raise ProgramError(f"a value of width {value.width} does not divide into {num_heads} heads")
        out = self._allocate(left.width + right.width)
        self._append(JoinHeads(out, left, right, num_heads))
        return out

    def rope(self, x: Value, table: int, *, head_dim: int | None = None, rotary_dim: int | None = None) -> None:
        """Rotate the first ``rotary_dim`` columns of each head of ``x``, by default all, in place.

        ``head_dim`` is the width of a head of ``x``, by default the program's.
        """
        head_dim = self._head_dim if head_dim is None else head_dim
        self._check_heads(x, head_dim)
        if not 0 <= table < len(self._ropes):
            raise ProgramError(f"there is no rope table {table}: add it with rope_table first")
        rotary_dim = head_dim if rotary_dim is None else rotary_dim
        if rotary_dim % 2 and rotary_dim == head_dim:
            raise ProgramError(f"rotary embeddings need an even head_dim, not {head_dim}")
        if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
            raise ProgramError(f"{rotary_dim} of the {head_dim} columns of a head cannot be rotated")
        self._append(Rope(x, table, head_dim, rotary_dim))

    def write_kv(self, layer: int, k: Value, v: Value) -> None:
        """Store the tokens' keys and values in the KV cache of ``layer``; once per layer."""
        self._check_layer(layer)
        width = self._num_kv_heads * self._head_dim
        for value in (k, v):
            self._check_read(value)
            if value.width != width:
                raise ProgramError(f"keys and values are {width} columns wide, not {value.width}")
        if layer in self._written_layers:
            raise ProgramError(f"the KV cache of layer {layer} is written twice")
        self._written_layers.add(layer)
        self._append(WriteKV(layer, k, v))

    def attention(
        self,
        q: Value,
        layer: int,
        *,
        num_heads: int,
        scale: float | None = None,
        window: int | None = None,
        chunk: int | None = None,
        softcap: float | None = None,
        sinks: str | None = None,
        causal: bool = True,
    ) -> Value:
        """Attention over the KV cache of ``layer``; see ``Attention``.

        ``scale`` defaults to 1 / sqrt(head_dim). ``sinks`` is the whole name of a vector [num_heads].
        """
        self._check_layer(layer)
        self._check_read(q)
        if q.width != num_heads * self._head_dim:
            raise ProgramError(f"{num_heads} heads of {self._head_dim} columns do not fill a value of width {q.width}")
        if num_heads % self._num_kv_heads:
            raise ProgramError(f"{num_heads} query heads cannot share {self._num_kv_heads} key-value heads evenly")
        if layer not in self._written_layers:
            raise ProgramError(f"attention of layer {layer} comes before its write_kv")
        for name, size in (("window", window), ("chunk", chunk)):
            if size is not None and size < 1:
                raise ProgramError(f"a {name} of {size} positions sees nothing; None means no {name}")
        if not causal and not (window is None and chunk is None):
            raise ProgramError("attention that is not causal sees all positions: it has no window and no chunk")
        if window is not None and chunk is not None:
            raise ProgramError("attention has a window or a chunk, not both")
        _check_softcap(softcap)
        if sinks is not None:
            self._declare_vector(sinks, num_heads)
        self._attended_layers.add(layer)
        out = self._allocate(q.width)
        scale = self._head_dim**-0.5 if scale is None else scale
        sizes = (num_heads, self._num_kv_heads, self._head_dim, scale)
        self._append(Attention(out, q, layer, *sizes, window, chunk, softcap, sinks, causal))
        return out

    def activation(self, x: Value, kind: ActivationKind) -> Value:
        """The activation of every number of ``x``."""
        self._check_read(x)
        out = self._allocate(x.width)
        self._append(Activation(out, x, kind))
        return out

    def gated_activation(self, x: Value, kind: GateKind = "silu") -> Value:
        """The activation of the left half of ``x`` times its right half."""
        self._check_read(x)
        if x.width % 2:
            raise ProgramError(f"a gate and its value need an even width, not {x.width}")
        out = self._allocate(x.width // 2)
        self._append(GatedActivation(out, x, kind))
        return out

    def route(
        self,
        x: Value,
        *,
        top_k: int,
        scores: Literal["softmax", "sigmoid"],
        normalize: bool,
        scale: float = 1.0,
        bias: tuple[str, Part] | None = None,
        num_groups: int = 1,
        top_groups: int = 1,
        group_score: Literal["max", "top2_sum"] = "max",
    ) -> Value:
        """The shares of experts, from their logits ``x``; see ``Route``. A bias is its name and where it is stored."""
        self._check_read(x)
        experts = x.width
        if experts % num_groups or not 1 <= top_groups <= num_groups:
            raise ProgramError(f"{experts} experts cannot be taken from {top_groups} of {num_groups} groups")
        size = experts // num_groups
        if not 1 <= top_k <= size * top_groups or (group_score == "top2_sum" and num_groups > 1 and size < 2):
            raise ProgramError(f"{top_k} experts cannot be taken from {top_groups} groups of {size}")
        bias_name = None if bias is None else self._declare(bias[0], (experts,), parts=(bias[1],), role="plain")
        out = self._allocate(experts)
        self._append(Route(out, x, top_k, scores, normalize, scale, bias_name, num_groups, top_groups, group_score))
        return out

    def experts(
        self,
        x: Value,
        shares: Value,
        *,
        gate_up: str,
        down: str,
        intermediate_size: int,
        gate_up_parts: Sequence[str | Part] | None = None,
        down_parts: Sequence[str | Part] | None = None,
        kind: GateKind = "silu",
        gate_up_bias: tuple[str, Sequence[Part]] | None = None,
        down_bias: tuple[str, Sequence[Part]] | None = None,
        scale_input: bool = False,
    ) -> Value:
        """What the experts make of ``x``, weighted by ``shares``; see ``Experts``.

        ``gate_up`` and ``down`` and their parts are whole names: some checkpoints have no ``.weight`` here. A bias is
        its name and where it is stored.
        """
        self._check_read(x)
        self._check_read(shares)
        experts = shares.width
        rows = experts * 2 * intermediate_size
        gate_up = self._declare(
            gate_up, (rows, x.width), parts=_as_parts(gate_up_parts), role="experts", experts=experts
        )
        down_shape = (experts * x.width, intermediate_size)
        down = self._declare(down, down_shape, parts=_as_parts(down_parts), role="experts", experts=experts)
        biases: list[str | None] = []
        for bias, size in ((gate_up_bias, rows), (down_bias, experts * x.width)):
            biases.append(
                None
                if bias is None
                else self._declare(bias[0], (size,), parts=tuple(bias[1]), role="plain", experts=experts)
            )
        out = self._allocate(x.width)
        self._append(Experts(out, x, shares, gate_up, down, kind, biases[0], biases[1], scale_input))
        return out

    def add(self, x: Value, y: Value) -> None:
        """Add ``y`` to ``x``, in place."""
        self._check_read(x)
        self._check_read(y)
        if x.width != y.width:
            raise ProgramError(f"cannot add a value of width {y.width} to one of width {x.width}")
        self._append(Add(x, y))

    def add_bias(self, x: Value, name: str, part: Part) -> None:
        """Add a vector [x.width], which has a whole name, to every row of ``x``, in place."""
        self._check_read(x)
        self._declare(name, (x.width,), parts=(part,), role="plain")
        self._append(AddBias(x, name))

    def scale(self, x: Value, factor: float) -> None:
        """Multiply ``x`` by a number, in place."""
        self._check_read(x)
        self._append(Scale(x, factor))

    def sigmoid_gate(self, x: Value, gate: Value) -> None:
        """Multiply ``x`` by the sigmoid of ``gate`` [T, 1], in place."""
        self._check_read(x)
        self._check_read(gate)
        if gate.width != 1:
            raise ProgramError(f"a gate has one column, not {gate.width}")
        self._append(SigmoidGate(x, gate))

    def logits(self, x: Value, name: str, *, softcap: float | None = None) -> None:
        """The scores of every token id; ``name`` may be the embedding's, which is then shared."""
        self._check_read(x)
        _check_softcap(softcap)
        weight, shape = f"{name}.weight", (self._vocab_size, x.width)
        shared = self._weights.get(weight)
        if shared is None:
            self._declare(weight, shape, role="head")
        elif shared.shape != shape:
            raise ProgramError(f"{weight} has shape {list(shared.shape)}; as the head it must be {list(shape)}")
        self._append(Logits(x, weight, softcap))

    def hidden_states(self, x: Value) -> None:
        """``x`` itself, of a model without logits."""
        self._check_read(x)
        self._append(HiddenStates(x))

    def build(self) -> Program:
        """Return the finished program.

        Raises:
            ProgramError: it does not end with ``logits`` or ``hidden_states``, or some layer does not write and attend
                to its KV cache.
        """
        if not self._ops or not isinstance(self._ops[-1], (Logits, HiddenStates)):
            raise ProgramError("a program ends with logits or hidden_states")
        missing = set(range(self._num_layers)) - (self._written_layers & self._attended_layers)
        if missing:
            raise ProgramError(f"layers {sorted(missing)} do not both write and attend to their KV cache")
        return Program(
            ops=tuple(self._ops),
            weights=tuple(self._weights.values()),
            buffer_widths=tuple(self._buffer_widths),
            ropes=tuple(self._ropes),
            num_layers=self._num_layers,
            num_kv_heads=self._num_kv_heads,
            head_dim=self._head_dim,
            vocab_size=self._vocab_size,
        )

    def _append(self, op: Op) -> None:
        if self._ops and isinstance(self._ops[-1], (Logits, HiddenStates)):
            last = type(self._ops[-1]).__name__
            raise ProgramError(f"{type(op).__name__} comes after {last}, which must be the last operation")
        self._ops.append(op)

    def _allocate(self, width: int) -> Value:
        if width < 1:
            raise ProgramError(f"a value needs at least one column, not {width}")
        self._buffer_widths.append(width)
        return Value(len(self._buffer_widths) - 1, 0, width)

    def _declare(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        parts: tuple[Part, ...] | None = None,
        role: str = "linear",
        experts: int = 1,
        mlc_as_stored: bool = False,
    ) -> str:
        if name in self._weights:
            raise ProgramError(f"the weight {name} is declared twice")
        self._weights[name] = WeightSpec(name, shape, parts or (Part(name),), role, experts, mlc_as_stored)
        return name

    def _declare_vector(
        self, name: str, width: int, *, parts: tuple[Part, ...] | None = None, plus: float = 0.0
    ) -> str:
        parts = tuple(replace(part, plus=plus) for part in parts or (Part(name),))
        return self._declare(name, (width,), parts=parts, role="plain")

    def _check_read(self, x: Value) -> None:
        # A buffer exists only once an operation fills it, so any columns inside one have been written.
        if not 0 <= x.buffer < len(self._buffer_widths):
            raise ProgramError(f"buffer {x.buffer} was never written")
        width = self._buffer_widths[x.buffer]
        if x.offset < 0 or x.width < 1 or x.offset + x.width > width:
            raise ProgramError(
                f"columns {x.offset}..{x.offset + x.width} do not lie in buffer {x.buffer} of width {width}"
            )

    def _check_heads(self, x: Value, head_dim: int | None = None) -> None:
        self._check_read(x)
        head_dim = self._head_dim if head_dim is None else head_dim
        if head_dim < 1 or x.width % head_dim:
            raise ProgramError(f"a value of width {x.width} does not divide into heads of {head_dim} columns")

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self._num_layers:
            raise ProgramError(f"layer {layer} is not one of the program's {self._num_layers} layers")


def _as_parts(parts: Sequence[str | Part] | None) -> tuple[Part, ...] | None:
    return None if parts is None else tuple(Part(part) if isinstance(part, str) else part for part in parts)


def _with_suffix(parts: Sequence[str | Part] | None, suffix: str) -> tuple[Part, ...] | None:
    whole = _as_parts(parts)
    return None if whole is None else tuple(replace(part, name=f"{part.name}.{suffix}") for part in whole)


def _check_eps(eps: float) -> None:
    if not eps >= 0:
        raise ProgramError(f"eps is {eps}, which must not be negative")


def _check_softcap(softcap: float | None) -> None:
    if softcap is not None and not softcap > 0:
        raise ProgramError(f"softcap is {softcap}, which must be greater than 0; None means no cap")
