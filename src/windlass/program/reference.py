"""The reference executor: numpy, float32, one sequence and one head at a time. Slow, and obviously right."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from windlass.program.adapter import LowRank, Update, check_update, linear_shapes
from windlass.program.executor import PAGE_SIZE, Batch, KVDtype, StepCancelledError, check_batch
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
from windlass.program.program import Program
from windlass.quantization.tensor import Tensor, bf16_to_f32, f32_to_bf16

F32 = NDArray[np.float32]


class ReferenceExecutor:
    """Runs a program in float32, every weight dequantized; implements ``Executor``.

    It is the oracle of the native executor and of the model files, and an engine can run on it where speed does not
    matter. Nothing is shared between instances. The KV cache begins as NaN, so that reading a slot that nobody wrote
    shows. Invariant: ``_kv`` is None exactly when the executor is closed.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        *,
        num_pages: int,
        max_tokens: int,
        max_positions: int,
        kv_dtype: KVDtype = "f32",
    ) -> None:
        """Take the weights and allocate a KV cache of ``num_pages`` pages.

        Args:
            program: what to run.
            weights: by name, exactly those of ``program.weights``; an iterable of pairs is consumed one by one.
            num_pages: pages of the KV cache.
            max_tokens: the most tokens of one step.
            max_positions: positions a sequence may have.
            kv_dtype: keys and values are rounded to this when stored.

        Raises:
            ValueError: a weight is missing, left over or of another shape, or a size is below 1.
        """
        for name, size in (("num_pages", num_pages), ("max_tokens", max_tokens), ("max_positions", max_positions)):
            if size < 1:
                raise ValueError(f"{name} is {size}, which must be at least 1")
        if kv_dtype not in get_args(KVDtype):
            raise ValueError(f"kv_dtype is {kv_dtype!r}, which must be one of {', '.join(get_args(KVDtype))}")
        self._program = program
        self._num_pages = num_pages
        self._max_tokens = max_tokens
        self._max_positions = max_positions
        self._kv_dtype = kv_dtype
        self._weights = _dequantize(program, weights)
        self._ropes = [table.cos_sin(max_positions) for table in program.ropes]
        # [layer, key or value, slot, head, column]; slot = page * PAGE_SIZE + position % PAGE_SIZE
        shape = (program.num_layers, 2, num_pages * PAGE_SIZE, program.num_kv_heads, program.head_dim)
        self._kv: F32 | None = np.full(shape, np.nan, dtype=np.float32)
        self._cancelled = threading.Event()
        self._progress = 0

    def run(self, batch: Batch) -> F32:
        """Run one forward step and return the result, float32 [R, output_width]; see ``Executor.run``.

        Raises:
            RuntimeError: the executor is closed.
        """
        if self._kv is None:
            raise RuntimeError("the executor is closed")
        batch = check_batch(
            batch,
            vocab_size=self._program.vocab_size,
            num_pages=self._num_pages,
            max_tokens=self._max_tokens,
            max_positions=self._max_positions,
        )
        for adapter in batch.adapters:
            if adapter is not None and not (isinstance(adapter, ReferenceAdapter) and adapter.program is self._program):
                raise ValueError("the batch has an adapter that this executor did not pack")
        step = _Step(batch, self._program, self._weights, self._ropes, self._kv, self._kv_dtype)
        for op in self._program.ops:
            self._stop_if_cancelled()
            step.apply(op)
            self._progress += 1
        self._stop_if_cancelled()
        return step.result

    def pack_adapter(self, updates: Iterable[Update]) -> ReferenceAdapter:
        """Dequantize an adapter; see ``Executor.pack_adapter``."""
        return ReferenceAdapter(self._program, updates)

    def cancel(self) -> None:
        """Make the ``run`` in progress, or else the next one, raise ``StepCancelledError`` soon."""
        self._cancelled.set()

    def clear_cancel(self) -> None:
        """Forget a ``cancel`` that no ``run`` has consumed."""
        self._cancelled.clear()

    @property
    def progress(self) -> int:
        """Operations run so far."""
        return self._progress

    def close(self) -> None:
        """Let go of weights and KV cache. Idempotent."""
        self._kv = None
        self._weights = {}
        self._ropes = []

    def _stop_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            self._cancelled.clear()
            raise StepCancelledError("the step was cancelled")


class ReferenceAdapter:
    """An adapter in float32; a ``PackedAdapter``. Invariant: ``_pieces`` is None exactly when it is closed."""

    def __init__(self, program: Program, updates: Iterable[Update]) -> None:
        """See ``Executor.pack_adapter``."""
        self.program = program
        shapes = linear_shapes(program)
        packed: dict[str, list[tuple[slice, F32, F32]]] = {}
        for name, pieces in updates:
            check_update(shapes, name, pieces)
            if name in packed:
                raise ValueError(f"{name} is updated twice")
            packed[name] = [_scaled(piece) for piece in pieces]
        self._pieces: dict[str, list[tuple[slice, F32, F32]]] | None = packed

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(a.nbytes + b.nbytes for pieces in (self._pieces or {}).values() for _, a, b in pieces)

    def close(self) -> None:
        """Let go of its matrices."""
        self._pieces = None

    def pieces(self, weight: str) -> Sequence[tuple[slice, F32, F32]]:
        """Return the rows that it adds to, A, and B times the scale, for each piece.

        Raises:
            ValueError: it is closed.
        """
        if self._pieces is None:
            raise ValueError("the batch has an adapter that is closed")
        return self._pieces.get(weight, ())


def _scaled(piece: LowRank) -> tuple[slice, F32, F32]:
    rows = slice(piece.first_row, piece.first_row + piece.b.shape[0])
    return rows, piece.a.dequantize(), piece.b.dequantize() * np.float32(piece.scale)


class _Step:
    """One run: the buffers, and one method per operation. Lives on the stack of ``run``."""

    def __init__(
        self,
        batch: Batch,
        program: Program,
        weights: dict[str, F32],
        ropes: list[tuple[F32, F32]],
        kv: F32,
        kv_dtype: str,
    ) -> None:
        tokens = len(batch.token_ids)
        self._batch = batch
        self._weights = weights
        self._ropes = ropes
        self._kv = kv
        self._kv_dtype = kv_dtype
        self._buffers = [np.empty((tokens, width), dtype=np.float32) for width in program.buffer_widths]
        self.result: F32 = np.empty((0, program.output_width), dtype=np.float32)

    def apply(self, op: Op) -> None:
        """Run one operation."""
        methods: dict[type[Any], Callable[[Any], None]] = {
            Embed: self._embed,
            EmbedPosition: self._embed_position,
            RmsNorm: self._rms_norm,
            LayerNorm: self._layer_norm,
            HeadNorm: self._head_norm,
            Linear: self._linear,
            HeadLinear: self._head_linear,
            JoinHeads: self._join_heads,
            Rope: self._rope,
            WriteKV: self._write_kv,
            Attention: self._attention,
            Activation: self._activation,
            GatedActivation: self._gated_activation,
            Route: self._route,
            Experts: self._experts,
            Add: self._add,
            AddBias: self._add_bias,
            Scale: self._scale,
            SigmoidGate: self._sigmoid_gate,
            Logits: self._logits,
            HiddenStates: self._hidden_states,
        }
        methods[type(op)](op)

    def _embed(self, op: Embed) -> None:
        self._view(op.out)[:] = self._weights[op.table][self._batch.token_ids]

    def _embed_position(self, op: EmbedPosition) -> None:
        self._view(op.out)[:] = self._weights[op.table][self._batch.positions]

    def _rms_norm(self, op: RmsNorm) -> None:
        self._view(op.out)[:] = _rms_norm(self._view(op.x), self._weights[op.weight], op.eps)

    def _layer_norm(self, op: LayerNorm) -> None:
        x = _centered(self._view(op.x))
        self._view(op.out)[:] = _rms_norm(x, self._weights[op.weight], op.eps) + self._bias(op.bias)

    def _head_norm(self, op: HeadNorm) -> None:
        heads = self._heads(op.x, op.head_dim)
        weight: F32 = np.ones((1, op.head_dim), np.float32)
        if op.weight is not None:
            weight = self._weights[op.weight].reshape(-1, op.head_dim)
        heads[:] = _rms_norm(_centered(heads) if op.centered else heads, weight, op.eps)

    def _linear(self, op: Linear) -> None:
        self._view(op.out)[:] = self._view(op.x) @ self._weights[op.weight].T + self._bias(op.bias)
        for sequence, adapter in enumerate(self._batch.adapters):
            if isinstance(adapter, ReferenceAdapter):
                tokens = slice(*self._batch.token_starts[sequence : sequence + 2])
                for rows, a, b in adapter.pieces(op.weight):
                    self._view(op.out)[tokens, rows] += self._view(op.x)[tokens] @ a.T @ b.T

    def _head_linear(self, op: HeadLinear) -> None:
        weight = self._weights[op.weight]
        x, out = self._heads(op.x, op.x.width // op.num_heads), self._heads(op.out, op.out.width // op.num_heads)
        for head, rows in enumerate(np.split(weight, op.num_heads)):
            out[:, head] = x[:, head, : weight.shape[1]] @ rows.T

    def _join_heads(self, op: JoinHeads) -> None:
        left, right = (self._heads(value, value.width // op.num_heads) for value in (op.left, op.right))
        self._heads(op.out, op.out.width // op.num_heads)[:] = np.concatenate((left, right), axis=-1)

    def _activation(self, op: Activation) -> None:
        self._view(op.out)[:] = _activate(self._view(op.x), op.activation)

    def _gated_activation(self, op: GatedActivation) -> None:
        self._view(op.out)[:] = _gate(self._view(op.x), op.activation)

    def _route(self, op: Route) -> None:
        x, out = self._view(op.x), self._view(op.out)
        bias = self._bias(op.bias)
        out[:] = 0
        for token in range(len(x)):
            scores = _softmax(x[token]) if op.scores == "softmax" else _sigmoid(x[token])
            choice = np.broadcast_to(scores + bias, scores.shape).astype(np.float32)
            if op.num_groups > 1:
                groups = np.sort(choice.reshape(op.num_groups, -1), axis=1)
                best = groups[:, -1] if op.group_score == "max" else groups[:, -1] + groups[:, -2]
                closed = np.argsort(-best, kind="stable")[op.top_groups :]
                choice.reshape(op.num_groups, -1)[closed] = -np.inf
            chosen = np.argsort(-choice, kind="stable")[: op.top_k]
            shares = scores[chosen]
            if op.normalize:
                shares = shares / shares.sum()
            out[token, chosen] = shares * np.float32(op.scale)

    def _experts(self, op: Experts) -> None:
        x, shares, out = self._view(op.x), self._view(op.shares), self._view(op.out)
        experts = op.shares.width
        gate_up = self._weights[op.gate_up].reshape(experts, -1, op.x.width)
        down = self._weights[op.down].reshape(experts, op.out.width, -1)
        gate_up_bias, down_bias = (
            np.zeros((experts, 1), np.float32) if name is None else self._weights[name].reshape(experts, -1)
            for name in (op.gate_up_bias, op.down_bias)
        )
        out[:] = 0
        for expert in range(experts):
            tokens = np.flatnonzero(shares[:, expert])
            share = shares[tokens, expert, None]
            rows = x[tokens] * share if op.scale_input else x[tokens]
            inner = _gate(rows @ gate_up[expert].T + gate_up_bias[expert], op.activation)
            result = inner @ down[expert].T + down_bias[expert]
            out[tokens] += result if op.scale_input else result * share

    def _add(self, op: Add) -> None:
        self._view(op.x)[:] += self._view(op.y)

    def _add_bias(self, op: AddBias) -> None:
        self._view(op.x)[:] += self._weights[op.bias]

    def _scale(self, op: Scale) -> None:
        self._view(op.x)[:] *= np.float32(op.factor)

    def _sigmoid_gate(self, op: SigmoidGate) -> None:
        self._view(op.x)[:] *= _sigmoid(self._view(op.gate))

    def _logits(self, op: Logits) -> None:
        self.result = _capped(self._view(op.x)[self._batch.logit_rows] @ self._weights[op.weight].T, op.softcap)

    def _hidden_states(self, op: HiddenStates) -> None:
        self.result = self._view(op.x)[self._batch.logit_rows]

    def _bias(self, name: str | None) -> Any:
        return np.float32(0) if name is None else self._weights[name]

    def _view(self, value: Value) -> F32:
        return self._buffers[value.buffer][:, value.offset : value.offset + value.width]

    def _heads(self, value: Value, head_dim: int) -> F32:
        """A view [T, heads, head_dim]: splitting the last axis never copies."""
        return self._view(value).reshape(len(self._batch.token_ids), -1, head_dim)

    def _rope(self, op: Rope) -> None:
        cos, sin = self._ropes[op.table]
        cos, sin = cos[self._batch.positions, None, :], sin[self._batch.positions, None, :]
        heads = self._heads(op.x, op.head_dim)
        half = op.rotary_dim // 2
        left, right = heads[..., :half].copy(), heads[..., half : 2 * half].copy()
        heads[..., :half] = left * cos - right * sin
        heads[..., half : 2 * half] = right * cos + left * sin

    def _write_kv(self, op: WriteKV) -> None:
        head_dim = self._kv.shape[-1]
        keys = _round(self._heads(op.k, head_dim), self._kv_dtype)
        values = _round(self._heads(op.v, head_dim), self._kv_dtype)
        for sequence in range(len(self._batch.token_starts) - 1):
            first, last = self._batch.token_starts[sequence : sequence + 2]
            slots = self._slots(sequence, self._batch.positions[first:last])
            self._kv[op.layer, 0, slots] = keys[first:last]
            self._kv[op.layer, 1, slots] = values[first:last]

    def _attention(self, op: Attention) -> None:
        q, out = self._heads(op.q, op.head_dim), self._heads(op.out, op.head_dim)
        for sequence in range(len(self._batch.token_starts) - 1):
            first, last = self._batch.token_starts[sequence : sequence + 2]
            for token in range(first, last):
                position = int(self._batch.positions[token])
                start = 0
                if op.window is not None:
                    start = max(0, position - op.window + 1)
                elif op.chunk is not None:
                    start = position // op.chunk * op.chunk
                end = position if op.causal else int(self._batch.positions[last - 1])
                slots = self._slots(sequence, np.arange(start, end + 1))
                keys, values = self._kv[op.layer, 0, slots], self._kv[op.layer, 1, slots]
                for head in range(op.num_heads):
                    kv_head = head // (op.num_heads // op.num_kv_heads)
                    scores = _capped(keys[:, kv_head] @ q[token, head] * np.float32(op.scale), op.softcap)
                    if op.sinks is not None:
                        scores = np.append(scores, self._weights[op.sinks][head])
                    out[token, head] = _softmax(scores)[: len(slots)] @ values[:, kv_head]

    def _slots(self, sequence: int, positions: NDArray[Any]) -> NDArray[np.int64]:
        first_page = self._batch.page_starts[sequence]
        pages = self._batch.page_ids[first_page + positions // PAGE_SIZE].astype(np.int64)
        slots: NDArray[np.int64] = pages * PAGE_SIZE + positions % PAGE_SIZE
        return slots


def _dequantize(program: Program, weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> dict[str, F32]:
    shapes = {spec.name: spec.shape for spec in program.weights}
    result: dict[str, F32] = {}
    for name, tensor in weights.items() if isinstance(weights, Mapping) else weights:
        if name not in shapes:
            raise ValueError(f"the program has no weight {name}")
        if tensor.shape != shapes[name]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, the program wants {list(shapes[name])}")
        result[name] = tensor.dequantize()
    missing = sorted(shapes.keys() - result.keys())
    if missing:
        raise ValueError(f"weights are missing: {', '.join(missing)}")
    return result


def _rms_norm(x: F32, weight: F32, eps: float) -> F32:
    mean_square = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    root: F32 = np.sqrt(mean_square + np.float32(eps))
    normalized: F32 = x / root * weight
    return normalized


def _centered(x: F32) -> F32:
    centered: F32 = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    return centered


def _capped(x: F32, cap: float | None) -> F32:
    return x if cap is None else np.float32(cap) * np.tanh(x / np.float32(cap))


def _activate(x: F32, activation: ActivationKind) -> F32:
    result: F32
    if activation == "silu":
        result = x * _sigmoid(x)
    elif activation == "relu":
        result = np.maximum(x, 0)
    elif activation == "gelu_tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        result = x * np.float32(0.5) * (1 + np.tanh(inner))
    else:
        result = (x * 0.5 * (1 + _erf(x / math.sqrt(2)))).astype(np.float32)
    return result


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gate(x: F32, activation: GateKind) -> F32:
    width = x.shape[1] // 2
    gate, up = x[:, :width], x[:, width:]
    if activation == "clamped_swiglu":
        gate, up = np.minimum(gate, np.float32(7)), np.clip(up, np.float32(-7), np.float32(7))
        clamped: F32 = gate * _sigmoid(gate * np.float32(1.702)) * (up + 1)
        return clamped
    return _activate(gate, activation) * up


def _sigmoid(x: F32) -> F32:
    # exp of a positive number could overflow, so both halves are written with a negative one.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)


def _softmax(scores: F32) -> F32:
    weights: F32 = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights


def _round(x: F32, kv_dtype: str) -> F32:
    if kv_dtype == "f16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    if kv_dtype == "bf16":
        return bf16_to_f32(f32_to_bf16(x))
    if kv_dtype in ("int16", "int8"):
        # Codes of 14 or 8 bits, one scale per token and head.
        scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(8191 if kv_dtype == "int16" else 127)
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
        rounded: F32 = np.rint(x * inverse) * scale
        return rounded
    return x
