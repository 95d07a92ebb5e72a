"""Programs and batches for tests of the native executor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from windlass.native import cpu_info
from windlass.program.builder import ProgramBuilder
from windlass.program.executor import PAGE_SIZE, Batch
from windlass.program.ops import Embed, Logits, Op, Value
from windlass.program.program import Part, Program, WeightSpec
from windlass.quantization import Format, Tensor, f32_to_bf16

KERNELS = cpu_info().kernels


@dataclass(frozen=True)
class PlainRope:
    """Rotary angles without any scaling."""

    half: int
    theta: float = 10000.0

    def cos_sin(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        angles = np.arange(positions)[:, None] * self.theta ** (-np.arange(self.half) / self.half)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def int32(values: object) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32).reshape(-1)


@dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence in one step."""

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]


def batch_of(*chunks: Chunk, rows: Sequence[int] | None = None) -> Batch:
    """A ragged batch; by default with the logits of every token."""
    tokens = sum(len(chunk.tokens) for chunk in chunks)
    return Batch(
        token_ids=int32(np.concatenate([chunk.tokens for chunk in chunks])),
        positions=int32(np.concatenate([np.arange(len(c.tokens)) + c.start for c in chunks])),
        token_starts=int32(np.cumsum([0, *(len(chunk.tokens) for chunk in chunks)])),
        page_ids=int32(np.concatenate([chunk.pages for chunk in chunks])),
        page_starts=int32(np.cumsum([0, *(len(chunk.pages) for chunk in chunks)])),
        logit_rows=int32(range(tokens) if rows is None else rows),
    )


def single(tokens: Sequence[int]) -> Batch:
    """One sequence from position 0 in the first pages."""
    return batch_of(Chunk(tokens, 0, range((len(tokens) - 1) // PAGE_SIZE + 1)))


def bare_program(ops: Sequence[Op], weights: dict[str, Tensor], widths: Sequence[int], vocab_size: int) -> Program:
    """A program without layers: what the builder would refuse, to test operations by themselves."""
    specs = tuple(WeightSpec(name, tensor.shape, (Part(name),)) for name, tensor in weights.items())
    return Program(tuple(ops), specs, tuple(widths), (), 1, 1, 16, vocab_size)


def product_program(x: NDArray[np.float32], weight: Tensor) -> tuple[Program, dict[str, Tensor]]:
    """logits[t] = x[token_ids[t]] @ weight.T for x and weight of one shape [N, K]."""
    rows, columns = weight.shape
    weights = {"x": f32_tensor(x), "w": weight}
    value = Value(0, 0, columns)
    return bare_program([Embed(value, "x"), Logits(value, "w")], weights, [columns], rows), weights


def f32_tensor(values: NDArray[np.float32]) -> Tensor:
    return Tensor(Format.F32, values.shape, np.ascontiguousarray(values, dtype=np.float32))


@dataclass(frozen=True)
class Kind:
    """How a random weight is stored."""

    format: Format
    group: int = 0
    half_scales: bool = True
    one_zero: bool = False
    ordered: bool = False

    def __str__(self) -> str:
        if not self.format.grouped:
            return self.format.value
        if self.format is Format.FP8:
            return f"fp8-{self.group}"
        scales = "f16" if self.half_scales else "f32"
        return f"{self.format.value}-{self.group}-{scales}{'-one-zero' * self.one_zero}{'-ordered' * self.ordered}"

    def tensor(self, rng: np.random.Generator, rows: int, columns: int) -> Tensor:
        shape = (rows, columns)
        values = rng.standard_normal(shape, dtype=np.float32) / np.float32(columns**0.5)
        if self.format is Format.F32:
            return Tensor(self.format, shape, values)
        if self.format is Format.F16:
            return Tensor(self.format, shape, values.astype(np.float16))
        if self.format is Format.BF16:
            return Tensor(self.format, shape, f32_to_bf16(values))
        groups = -(-columns // self.group)
        if self.format is Format.FP8:
            codes = rng.integers(0, 256, shape, dtype=np.uint8)
            codes[(codes & 0x7F) == 0x7F] = 0x08
            scales = rng.uniform(0.5, 1.5, (rows, groups)) / (columns**0.5 * 120)
            return Tensor(self.format, shape, codes, self.group, scales.astype(np.float32))
        order = rng.permutation(columns).astype(np.int32) if self.ordered else None
        int8 = self.format is Format.INT8
        scales = rng.uniform(0.5, 1.5, (rows, groups)) / (columns**0.5 * (74 if int8 else 4.6))
        scales = scales.astype(np.float16 if self.half_scales else np.float32)
        if int8:
            codes = rng.integers(-128, 128, shape, dtype=np.int8)
            return Tensor(self.format, shape, codes, self.group, scales, order=order)
        codes = rng.integers(0, 256, (rows, (columns + 1) // 2), dtype=np.uint8)
        if self.one_zero:
            zeros = np.broadcast_to(np.uint8(7), (rows, groups))
        else:
            zeros = rng.integers(0, 17, (rows, groups), dtype=np.uint8)
        return Tensor(self.format, shape, codes, self.group, scales, zeros, order=order)


KINDS = [
    Kind(Format.F32),
    Kind(Format.F16),
    Kind(Format.BF16),
    Kind(Format.INT8, 32),
    Kind(Format.INT8, 40, half_scales=False),
    Kind(Format.INT8, 4096),
    Kind(Format.INT4, 32, one_zero=True),
    Kind(Format.INT4, 40),
    Kind(Format.INT4, 128, half_scales=False),
    Kind(Format.INT8, 32, ordered=True),
    Kind(Format.INT4, 40, ordered=True),
    Kind(Format.FP8, 64),
    Kind(Format.FP8, 4096),
]


@dataclass(frozen=True)
class LittleModel:
    """A decoder with everything the operations can do, small and ragged."""

    hidden: int = 72
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 20
    ffn: int = 88
    vocab: int = 101
    layers: int = 2
    window: int | None = None
    kind: Kind = KINDS[0]

    def program(self) -> Program:
        builder = ProgramBuilder(
            num_layers=self.layers, num_kv_heads=self.kv_heads, head_dim=self.head_dim, vocab_size=self.vocab
        )
        rope = builder.rope_table(PlainRope(self.head_dim // 2))
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        x = builder.embed("embed", self.hidden)
        for i in range(self.layers):
            qkv = builder.linear(builder.rms_norm(x, f"{i}.norm1", 1e-5), f"{i}.qkv", queries + 2 * keys, bias=True)
            q, k, v = qkv.columns(0, queries), qkv.columns(queries, keys), qkv.columns(queries + keys, keys)
            builder.head_norm(q, f"{i}.q_norm", 1e-6)
            builder.head_norm(k, f"{i}.k_norm", 1e-6)
            builder.rope(q, rope)
            builder.rope(k, rope)
            builder.write_kv(i, k, v)
            attended = builder.attention(q, i, num_heads=self.heads, window=self.window)
            builder.add(x, builder.linear(attended, f"{i}.o", self.hidden))
            gate_up = builder.linear(builder.rms_norm(x, f"{i}.norm2", 1e-5), f"{i}.gate_up", 2 * self.ffn)
            builder.add(x, builder.linear(builder.gated_activation(gate_up), f"{i}.down", self.hidden))
        builder.logits(builder.rms_norm(x, "norm", 1e-5), "embed")
        return builder.build()

    def weights(self, seed: int = 0) -> dict[str, Tensor]:
        rng = np.random.default_rng(seed)
        weights = {}
        for spec in self.program().weights:
            if len(spec.shape) == 1:
                weights[spec.name] = f32_tensor(1 + 0.2 * rng.standard_normal(spec.shape, dtype=np.float32))
            else:
                weights[spec.name] = self.kind.tensor(rng, *spec.shape)
        return weights


def as_multiplied(x: NDArray[np.float32], weight: Tensor) -> NDArray[np.float32]:
    """The rows of x as a product with ``weight`` sees them: quantized per block of columns when the weight is."""
    if weight.scales is None or weight.format is Format.FP8:
        return x
    if weight.order is not None:
        out = np.empty_like(x)
        out[:, weight.order] = as_multiplied(x[:, weight.order], replace(weight, order=None))
        return out
    columns, group = weight.shape[1], weight.group_size
    if group <= 128:
        block = group * (128 // group)
    elif group >= columns:
        block = 128
    else:
        block = max(part for part in range(1, 129) if group % part == 0)
    largest = np.float32(127 if weight.format is Format.INT4 else 16256)
    out = np.zeros_like(x)
    for start in range(0, columns, block):
        part = x[:, start : start + block]
        magnitude = np.abs(part).max(axis=1, keepdims=True)
        with np.errstate(divide="ignore", over="ignore"):
            codes = np.rint(part * (largest / magnitude))
        out[:, start : start + block] = np.where(magnitude >= 2.0**-100, codes * (magnitude / largest), 0)
    return out
