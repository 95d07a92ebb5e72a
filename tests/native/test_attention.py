"""Paged attention against a plain softmax in float64, and the smaller operations against their formulas."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from support.native import KERNELS, Chunk, bare_program, batch_of, f32_tensor, single
from windlass.native import NativeExecutor
from windlass.program.ops import Attention, Embed, GatedActivation, HiddenStates, Logits, Value, WriteKV
from windlass.program.program import Part, Program, WeightSpec
from windlass.quantization import Tensor, bf16_to_f32, f32_to_bf16

F64 = NDArray[np.float64]
VOCAB = 256


@dataclass(frozen=True)
class Shape:
    """Sizes of an attention, and what its tokens see."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: tuple[float, ...] | None = None
    causal: bool = True


def attention_program(shape: Shape) -> Program:
    """logits[:, :heads * head_dim] is the attention of q, k and v, which are the columns of the tokens' table rows."""
    heads, kv_heads, head_dim = shape.heads, shape.kv_heads, shape.head_dim
    queries, keys = heads * head_dim, kv_heads * head_dim
    qkv, out = Value(0, 0, queries + 2 * keys), Value(1, 0, queries)
    q, k, v = qkv.columns(0, queries), qkv.columns(queries, keys), qkv.columns(queries + keys, keys)
    ops = (
        Embed(qkv, "table"),
        WriteKV(1, k, v),
        Attention(
            out,
            q,
            1,
            heads,
            kv_heads,
            head_dim,
            head_dim**-0.5,
            shape.window,
            shape.chunk,
            shape.softcap,
            "sinks" if shape.sinks else None,
            shape.causal,
        ),
        Logits(out, "one"),
    )
    weights = [
        WeightSpec("table", (VOCAB, qkv.width), (Part("table"),)),
        WeightSpec("one", (VOCAB, queries), (Part("one"),)),
    ]
    if shape.sinks:
        weights.append(WeightSpec("sinks", (heads,), (Part("sinks"),)))
    return Program(ops, tuple(weights), (qkv.width, queries), (), 2, kv_heads, head_dim, VOCAB)


def stored(x: NDArray[np.float32], kv_dtype: str) -> F64:
    """Keys or values [tokens, KV heads, head_dim] as the cache keeps them."""
    if kv_dtype in ("int16", "int8"):
        scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(8191 if kv_dtype == "int16" else 127)
        return np.rint(x * (np.float32(1) / scale)).astype(np.float64) * scale
    if kv_dtype == "f16":
        return x.astype(np.float16).astype(np.float64)
    if kv_dtype == "bf16":
        return bf16_to_f32(f32_to_bf16(x)).astype(np.float64)
    return x.astype(np.float64)


def expected_attention(rows: NDArray[np.float32], shape: Shape, kv_dtype: str) -> F64:
    """Softmax attention of one sequence whose tokens have the given table rows."""
    heads, kv_heads, head_dim = shape.heads, shape.kv_heads, shape.head_dim
    queries, keys = heads * head_dim, kv_heads * head_dim
    q = rows[:, :queries].reshape(len(rows), heads, head_dim).astype(np.float64)
    k = stored(rows[:, queries : queries + keys].reshape(len(rows), kv_heads, head_dim), kv_dtype)
    v = stored(rows[:, queries + keys :].reshape(len(rows), kv_heads, head_dim), kv_dtype)
    k, v = np.repeat(k, heads // kv_heads, axis=1), np.repeat(v, heads // kv_heads, axis=1)
    scores = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(head_dim)
    if shape.softcap:
        scores = shape.softcap * np.tanh(scores / shape.softcap)
    i, j = np.indices((len(rows), len(rows)))
    seen = (j > i - (shape.window or len(rows))) & (j >= (i // shape.chunk * shape.chunk if shape.chunk else 0))
    if shape.causal:
        seen &= j <= i
    scores = np.where(seen, scores, -np.inf)
    sinks = np.array(shape.sinks or [-np.inf] * heads)[:, None, None]
    highest = np.maximum(scores.max(axis=-1, keepdims=True), sinks)
    weights = np.exp(scores - highest)
    weights /= weights.sum(axis=-1, keepdims=True) + np.exp(sinks - highest)
    return np.einsum("hij,jhd->ihd", weights, v).reshape(len(rows), queries)


def attention_weights(shape: Shape, table: NDArray[np.float32]) -> dict[str, Tensor]:
    one = np.eye(VOCAB, shape.heads * shape.head_dim, dtype=np.float32)
    weights = {"table": f32_tensor(table), "one": f32_tensor(one)}
    return weights if shape.sinks is None else {**weights, "sinks": f32_tensor(np.float32(shape.sinks))}


SHAPES = [
    Shape(4, 1, 20),
    Shape(2, 2, 64, window=5),
    Shape(6, 2, 8, window=16),
    Shape(3, 1, 80, window=33),
    Shape(1, 1, 1, window=1),
    Shape(4, 2, 20, chunk=24),
    Shape(2, 1, 24, softcap=0.7),
    Shape(4, 2, 16, window=20, sinks=(-2.0, 0.5, 1.5, 4.0)),
    Shape(37, 1, 4, sinks=tuple(i / 9 for i in range(37))),
]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "bf16", "int16", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ragged_batches_in_any_chunks(
    kernels: str, kv_dtype: Literal["f32", "f16", "bf16", "int16", "int8"], shape: Shape
) -> None:
    rng = np.random.default_rng(10)
    program = attention_program(shape)
    table = rng.standard_normal(program.weights[0].shape, dtype=np.float32) * np.float32(1.5)
    table[-1] = np.nan
    executor = NativeExecutor(
        program,
        attention_weights(shape, table),
        num_pages=20,
        max_tokens=128,
        max_positions=128,
        num_threads=2,
        kv_dtype=kv_dtype,
        kernels=kernels,
    )
    # What an earlier sequence left in the pages must not matter, not even NaN.
    executor.run(batch_of(Chunk([VOCAB - 1] * 80, 0, range(5)), rows=[]))
    executor.run(batch_of(Chunk([VOCAB - 1] * 80, 0, range(5, 10)), rows=[]))

    prompts = [rng.integers(0, VOCAB - 1, length) for length in (70, 1, 33, 16)]
    pages = [[4, 0, 7, 1, 9], [8], [3, 2, 6], [5]]
    expected = [expected_attention(table[p], shape, kv_dtype) for p in prompts]
    width = shape.heads * shape.head_dim

    # Against codes queries and weights become codes too.
    tolerance = 2e-4 if kv_dtype == "int16" else 2e-6
    whole = executor.run(batch_of(*(Chunk(p, 0, g) for p, g in zip(prompts, pages, strict=True))))[:, :width]
    np.testing.assert_allclose(whole, np.concatenate(expected), rtol=0, atol=tolerance * np.abs(table[:-1]).max())

    # The longest sequence once more, in chunks beside the others.
    pieces = []
    for start, end in ((0, 1), (1, 7), (7, 16), (16, 40), (40, 70)):
        chunk = Chunk(prompts[0][start:end], start, pages[0])
        pieces.append(executor.run(batch_of(Chunk(prompts[2], 0, pages[2]), chunk))[len(prompts[2]) :, :width])
    np.testing.assert_array_equal(np.concatenate(pieces), whole[:70])
    executor.close()


@functools.cache
def long_context(shape: Shape, length: int) -> tuple[NDArray[np.float32], NDArray[np.int64], list[int], F64]:
    """A table, a prompt of its rows, pages for it, and what attention makes of it."""
    rng = np.random.default_rng(12)
    table = rng.standard_normal(attention_program(shape).weights[0].shape, dtype=np.float32)
    prompt = rng.integers(0, VOCAB, length)
    pages = rng.permutation(-(-length // 16)).tolist()
    return table, prompt, pages, expected_attention(table[prompt], shape, "f16")


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    "shape",
    [Shape(18, 1, 4), Shape(2, 2, 16, window=700), Shape(5, 1, 16, window=600, sinks=(0, 1, 2, 3, 4))],
    ids=str,
)
def test_long_contexts_are_the_same_bits_whoever_computes_their_segments(kernels: str, shape: Shape) -> None:
    width, length = shape.heads * shape.head_dim, 1300
    program = attention_program(shape)
    table, prompt, pages, expected = long_context(shape, length)
    weights = attention_weights(shape, table)
    results = []
    for threads in (1, 2, 3):
        executor = NativeExecutor(
            program,
            weights,
            num_pages=len(pages),
            max_tokens=length,
            max_positions=length,
            num_threads=threads,
            kernels=kernels,
        )
        whole = executor.run(batch_of(Chunk(prompt, 0, pages)))[:, :width]
        np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5)
        # Alone a token's segments are shared out among the threads.
        for end in (511, 512, 513, 1024, 1025, 1100, 1300):
            alone = executor.run(batch_of(Chunk(prompt[end - 1 : end], end - 1, pages)))[0, :width]
            np.testing.assert_array_equal(alone, whole[end - 1])
        results.append(whole)
        executor.close()
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "int16"])
def test_whole_sequences_that_see_later_tokens(kernels: str, kv_dtype: Literal["f32", "f16", "int16"]) -> None:
    rng = np.random.default_rng(13)
    shape = Shape(3, 1, 20, causal=False)
    program = attention_program(shape)
    table = rng.standard_normal(program.weights[0].shape, dtype=np.float32)
    executor = NativeExecutor(
        program,
        attention_weights(shape, table),
        num_pages=90,
        max_tokens=700,
        max_positions=700,
        num_threads=2,
        kv_dtype=kv_dtype,
        kernels=kernels,
    )
    prompts = [rng.integers(0, VOCAB, length) for length in (45, 1, 600)]
    pages = [[4, 0, 7], [8], list(range(50, 88))]
    chunks = [Chunk(prompt, 0, page) for prompt, page in zip(prompts, pages, strict=True)]
    whole = executor.run(batch_of(*chunks))[:, :60]
    expected = np.concatenate([expected_attention(table[prompt], shape, kv_dtype) for prompt in prompts])
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-3 if kv_dtype == "int16" else 1e-5)
    start = 0
    for chunk in chunks:
        alone = executor.run(batch_of(chunk))[:, :60]
        np.testing.assert_array_equal(alone, whole[start : start + len(alone)])
        start += len(alone)
    with pytest.raises(ValueError, match="begin at 0 in every sequence"):
        executor.run(batch_of(chunks[1], Chunk([1], 45, [4, 0, 7])))
    executor.close()


@pytest.mark.parametrize("kv_dtype", ["f16", "int16"])
def test_many_wide_heads_that_share_one(kv_dtype: Literal["f16", "int16"]) -> None:
    rng = np.random.default_rng(14)
    shape = Shape(128, 1, 576)
    table = rng.standard_normal((9, (shape.heads + 2) * shape.head_dim), dtype=np.float32)
    qkv, out = Value(0, 0, table.shape[1]), Value(1, 0, shape.heads * shape.head_dim)
    q, k, v = qkv.columns(0, out.width), qkv.columns(out.width, 576), qkv.columns(out.width + 576, 576)
    ops = (Embed(qkv, "table"), WriteKV(0, k, v), Attention(out, q, 0, 128, 1, 576, 576**-0.5), HiddenStates(out))
    specs = (WeightSpec("table", table.shape, (Part("table"),)),)
    program = Program(ops, specs, (qkv.width, out.width), (), 1, 1, 576, len(table))
    executor = NativeExecutor(
        program, {"table": f32_tensor(table)}, num_pages=2, max_tokens=20, max_positions=32, kv_dtype=kv_dtype
    )
    prompt = rng.integers(0, 9, 20)
    whole = executor.run(single(prompt))
    expected = expected_attention(table[prompt], shape, kv_dtype)
    # The more columns, the fewer bits have the codes of a query.
    np.testing.assert_allclose(whole, expected, rtol=0, atol=5e-3 if kv_dtype == "int16" else 1e-5)
    np.testing.assert_array_equal(executor.run(batch_of(Chunk(prompt[19:], 19, [0, 1]))), whole[19:])
    executor.close()


@pytest.mark.parametrize("kernels", KERNELS)
def test_large_scores_do_not_overflow(kernels: str) -> None:
    shape = Shape(1, 1, 16)
    program = attention_program(shape)
    table = np.random.default_rng(11).standard_normal(program.weights[0].shape, dtype=np.float32) * np.float32(30)
    executor = NativeExecutor(
        program,
        attention_weights(shape, table),
        num_pages=4,
        max_tokens=64,
        max_positions=64,
        kv_dtype="f32",
        kernels=kernels,
    )
    tokens = list(range(50))
    expected = expected_attention(table[tokens], shape, "f32")
    # Scores reach thousands, where float32 keeps about four digits behind the point.
    np.testing.assert_allclose(executor.run(single(tokens))[:, :16], expected, rtol=0, atol=0.2)
    executor.close()


@pytest.mark.parametrize("kernels", KERNELS)
def test_silu_gate_is_accurate_over_the_whole_range(kernels: str) -> None:
    gates = np.concatenate([np.linspace(-100, 100, 1001), [0.0, 1e-10, -1e-10, 3e38, -3e38]]).astype(np.float32)
    size = len(gates)
    weights = {"table": f32_tensor(np.concatenate([gates, np.ones(size)])[None].repeat(size, 0).astype(np.float32))}
    weights["one"] = f32_tensor(np.eye(size, dtype=np.float32))
    x, out = Value(0, 0, 2 * size), Value(1, 0, size)
    ops = [Embed(x, "table"), GatedActivation(out, x, "silu"), Logits(out, "one")]
    executor = NativeExecutor(
        bare_program(ops, weights, [2 * size, size], size),
        weights,
        num_pages=1,
        max_tokens=1,
        max_positions=1,
        kernels=kernels,
    )
    exact = gates.astype(np.float64) / (1 + np.exp(-np.clip(gates.astype(np.float64), -700, None)))
    np.testing.assert_allclose(executor.run(single([0]))[0], exact, rtol=2e-6, atol=1e-35)
    executor.close()
