"""The reference executor: numpy, float32, one sequence and one head at a time. Slow, and obviously right."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from windlass.program.adapter import LowRank, Update, check_update, linear_shapes
from windlass.program.executor import PAGE_SIZE, Batch, StepCancelledError, check_batch
from windlass.program.ops import (
    Add,
    Attention,
    Embed,
    GatedActivation,
    HeadNorm,
    Linear,
    Op,
    RmsNorm,
    Rope,
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
        kv_dtype: Literal["f32", "f16", "bf16", "int16", "int8"] = "f32",
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
        if kv_dtype not in ("f32", "f16", "bf16", "int16", "int8"):
            raise ValueError(f"kv_dtype is {kv_dtype!r}, which must be one of f32, f16, bf16, int16, int8")
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
        """Run one forward step and return the logits, float32 [R, vocab_size]; see ``Executor.run``.

        Raises:
            RuntimeError: the executor is closed.
        """
        if self._kv is None:
            raise RuntimeError("the executor is closed")
        check_batch(
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
        return step.logits

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
        self.logits: F32 = np.empty((0, program.vocab_size), dtype=np.float32)

    def apply(self, op: Op) -> None:
        """Run one operation."""
        if isinstance(op, Embed):
            self._view(op.out)[:] = self._weights[op.table][self._batch.token_ids]
        elif isinstance(op, RmsNorm):
            self._view(op.out)[:] = _rms_norm(self._view(op.x), self._weights[op.weight], op.eps)
        elif isinstance(op, HeadNorm):
            heads = self._heads(op.x, op.head_dim)
            heads[:] = _rms_norm(heads, self._weights[op.weight], op.eps)
        elif isinstance(op, Linear):
            bias = np.float32(0) if op.bias is None else self._weights[op.bias]
            self._view(op.out)[:] = self._view(op.x) @ self._weights[op.weight].T + bias
            self._adapt(op, self._batch.adapters)
        elif isinstance(op, Rope):
            self._rope(op)
        elif isinstance(op, WriteKV):
            self._write_kv(op)
        elif isinstance(op, Attention):
            self._attention(op)
        elif isinstance(op, GatedActivation):
            x = self._view(op.x)
            gate, up = x[:, : op.out.width], x[:, op.out.width :]
            self._view(op.out)[:] = gate * _sigmoid(gate) * up
        elif isinstance(op, Add):
            self._view(op.x)[:] += self._view(op.y)
        else:  # Logits
            self.logits = self._view(op.x)[self._batch.logit_rows] @ self._weights[op.weight].T

    def _view(self, value: Value) -> F32:
        return self._buffers[value.buffer][:, value.offset : value.offset + value.width]

    def _heads(self, value: Value, head_dim: int) -> F32:
        """A view [T, heads, head_dim]: splitting the last axis never copies."""
        return self._view(value).reshape(len(self._batch.token_ids), -1, head_dim)

    def _adapt(self, op: Linear, adapters: Sequence[object]) -> None:
        for sequence, adapter in enumerate(adapters):
            if isinstance(adapter, ReferenceAdapter):
                tokens = slice(*self._batch.token_starts[sequence : sequence + 2])
                for rows, a, b in adapter.pieces(op.weight):
                    self._view(op.out)[tokens, rows] += self._view(op.x)[tokens] @ a.T @ b.T

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
                start = 0 if op.window is None else max(0, position - op.window + 1)
                slots = self._slots(sequence, np.arange(start, position + 1))
                keys, values = self._kv[op.layer, 0, slots], self._kv[op.layer, 1, slots]
                for head in range(op.num_heads):
                    kv_head = head // (op.num_heads // op.num_kv_heads)
                    weights = _softmax(keys[:, kv_head] @ q[token, head] * np.float32(op.scale))
                    out[token, head] = weights @ values[:, kv_head]

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
