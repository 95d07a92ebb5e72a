"""The language model files are written in: one method per operation, and a program at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from windlass.program.ops import (
    Add,
    Attention,
    Embed,
    GatedActivation,
    HeadNorm,
    Linear,
    Logits,
    Op,
    RmsNorm,
    Rope,
    Value,
    WriteKV,
)
from windlass.program.program import Program, RopeTable, WeightSpec


class ProgramError(ValueError):
    """A model file wrote a program that breaks an invariant of ``Program``: a bug of that file, not of a user's."""


class ProgramBuilder:
    """Numbers the buffers, declares the weights and checks the invariants of ``Program`` as operations are added.

    Weight names are given without their last part: ``linear(x, "lm_head", n)`` declares ``lm_head.weight``, and
    ``lm_head.bias`` when it has one. ``parts`` are the Hugging Face names to stack, in the same short form, best with
    the rows of each, without which no adapter can be for one of them; by default the weight has the same name there.
    Methods that fill a buffer return it; those that work in place return None.
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

    def rms_norm(self, x: Value, name: str, eps: float) -> Value:
        """Root mean square layer norm over the whole width of ``x``."""
        self._check_read(x)
        _check_eps(eps)
        weight = self._declare(f"{name}.weight", (x.width,), role="plain")
        out = self._allocate(x.width)
        self._append(RmsNorm(out, x, weight, eps))
        return out

    def head_norm(self, x: Value, name: str, eps: float) -> None:
        """Root mean square norm of each head, in place."""
        self._check_heads(x)
        _check_eps(eps)
        weight = self._declare(f"{name}.weight", (self._head_dim,), role="plain")
        self._append(HeadNorm(x, weight, self._head_dim, eps))

    def linear(
        self,
        x: Value,
        name: str,
        out_features: int,
        *,
        parts: Sequence[str] | Mapping[str, int] | None = None,
        bias: bool = False,
    ) -> Value:
        """``x`` times a weight [out_features, x.width] transposed, plus a bias [out_features] if it has one."""
        self._check_read(x)
        rows = tuple(parts.values()) if isinstance(parts, Mapping) else ()
        if rows and (sum(rows) != out_features or min(rows) < 1):
            raise ProgramError(f"{name}: parts of {list(rows)} rows do not make up {out_features}")
        weight = self._declare(
            f"{name}.weight", (out_features, x.width), parts=_with_suffix(parts, "weight"), part_rows=rows
        )
        bias_name = None
        if bias:
            bias_name = self._declare(f"{name}.bias", (out_features,), parts=_with_suffix(parts, "bias"), role="plain")
        out = self._allocate(out_features)
        self._append(Linear(out, x, weight, bias_name))
        return out

    def rope(self, x: Value, table: int) -> None:
        """Rotate each head of ``x`` by its token's position, in place, over the whole head."""
        self._check_heads(x)
        if not 0 <= table < len(self._ropes):
            raise ProgramError(f"there is no rope table {table}: add it with rope_table first")
        if self._head_dim % 2:
            raise ProgramError(f"rotary embeddings need an even head_dim, not {self._head_dim}")
        self._append(Rope(x, table, self._head_dim, rotary_dim=self._head_dim))

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
        self, q: Value, layer: int, *, num_heads: int, scale: float | None = None, window: int | None = None
    ) -> Value:
        """Causal attention over the KV cache of ``layer``; ``scale`` defaults to 1 / sqrt(head_dim)."""
        self._check_layer(layer)
        self._check_read(q)
        if q.width != num_heads * self._head_dim:
            raise ProgramError(f"{num_heads} heads of {self._head_dim} columns do not fill a value of width {q.width}")
        if num_heads % self._num_kv_heads:
            raise ProgramError(f"{num_heads} query heads cannot share {self._num_kv_heads} key-value heads evenly")
        if layer not in self._written_layers:
            raise ProgramError(f"attention of layer {layer} comes before its write_kv")
        if window is not None and window < 1:
            raise ProgramError(f"a window of {window} positions sees nothing; None means no window")
        self._attended_layers.add(layer)
        out = self._allocate(q.width)
        scale = self._head_dim**-0.5 if scale is None else scale
        self._append(Attention(out, q, layer, num_heads, self._num_kv_heads, self._head_dim, scale, window))
        return out

    def gated_activation(self, x: Value) -> Value:
        """SiLU of the left half of ``x`` times its right half."""
        self._check_read(x)
        if x.width % 2:
            raise ProgramError(f"a gate and its value need an even width, not {x.width}")
        out = self._allocate(x.width // 2)
        self._append(GatedActivation(out, x, "silu"))
        return out

    def add(self, x: Value, y: Value) -> None:
        """Add ``y`` to ``x``, in place."""
        self._check_read(x)
        self._check_read(y)
        if x.width != y.width:
            raise ProgramError(f"cannot add a value of width {y.width} to one of width {x.width}")
        self._append(Add(x, y))

    def logits(self, x: Value, name: str) -> None:
        """The scores of every token id; ``name`` may be the embedding's, which is then shared."""
        self._check_read(x)
        weight, shape = f"{name}.weight", (self._vocab_size, x.width)
        shared = self._weights.get(weight)
        if shared is None:
            self._declare(weight, shape, role="head")
        elif shared.shape != shape:
            raise ProgramError(f"{weight} has shape {list(shared.shape)}; as the head it must be {list(shape)}")
        self._append(Logits(x, weight))

    def build(self) -> Program:
        """Return the finished program.

        Raises:
            ProgramError: it does not end with ``logits``, or some layer does not write and attend to its KV cache.
        """
        if not self._ops or not isinstance(self._ops[-1], Logits):
            raise ProgramError("a program ends with logits")
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
        if self._ops and isinstance(self._ops[-1], Logits):
            raise ProgramError(f"{type(op).__name__} comes after logits, which must be the last operation")
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
        parts: tuple[str, ...] | None = None,
        role: str = "linear",
        part_rows: tuple[int, ...] = (),
    ) -> str:
        if name in self._weights:
            raise ProgramError(f"the weight {name} is declared twice")
        self._weights[name] = WeightSpec(name, shape, parts or (name,), role, part_rows)
        return name

    def _check_read(self, x: Value) -> None:
        # A buffer exists only once an operation fills it, so any columns inside one have been written.
        if not 0 <= x.buffer < len(self._buffer_widths):
            raise ProgramError(f"buffer {x.buffer} was never written")
        width = self._buffer_widths[x.buffer]
        if x.offset < 0 or x.width < 1 or x.offset + x.width > width:
            raise ProgramError(
                f"columns {x.offset}..{x.offset + x.width} do not lie in buffer {x.buffer} of width {width}"
            )

    def _check_heads(self, x: Value) -> None:
        self._check_read(x)
        if x.width % self._head_dim:
            raise ProgramError(f"a value of width {x.width} does not divide into heads of {self._head_dim} columns")

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self._num_layers:
            raise ProgramError(f"layer {layer} is not one of the program's {self._num_layers} layers")


def _with_suffix(parts: Iterable[str] | None, suffix: str) -> tuple[str, ...] | None:
    return None if parts is None else tuple(f"{part}.{suffix}" for part in parts)


def _check_eps(eps: float) -> None:
    if not eps >= 0:
        raise ProgramError(f"eps is {eps}, which must not be negative")
