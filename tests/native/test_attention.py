"""Paged attention against a plain softmax in float64, and the smaller operations against their formulas."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from support.native import KERNELS, Chunk, bare_program, batch_of, f32_tensor, single
from windlass.native import NativeExecutor
from windlass.program.ops import Attention, Embed, GatedActivation, Logits, Value, WriteKV
from windlass.program.program import Part, Program, WeightSpec
from windlass.quantization import bf16_to_f32, f32_to_bf16

F64 = NDArray[np.float64]
VOCAB = 256


def attention_program(heads: int, kv_heads: int, head_dim: int, window: int | None) -> Program:
    """logits[:, :heads * head_dim] is the attention of q, k and v, which are the columns of the tokens' table rows."""
    queries, keys = heads * head_dim, kv_heads * head_dim
    qkv, out = Value(0, 0, queries + 2 * keys), Value(1, 0, queries)
    q, k, v = qkv.columns(0, queries), qkv.columns(queries, keys), qkv.columns(queries + keys, keys)
    ops = (
        Embed(qkv, "table"),
        WriteKV(1, k, v),
        Attention(out, q, 1, heads, kv_heads, head_dim, head_dim**-0.5, window),
        Logits(out, "one"),
    )
    weights = (
        WeightSpec("table", (VOCAB, qkv.width), (Part("table"),)),
        WeightSpec("one", (VOCAB, queries), (Part("one"),)),
    )
    return Program(ops, weights, (qkv.width, queries), (), 2, kv_heads, head_dim, VOCAB)


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


def expected_attention(
    rows: NDArray[np.float32], heads: int, kv_heads: int, head_dim: int, window: int | None, kv_dtype: str
) -> F64:
    """Softmax attention of one sequence whose tokens have the given table rows."""
    queries, keys = heads * head_dim, kv_heads * head_dim
    q = rows[:, :queries].reshape(len(rows), heads, head_dim).astype(np.float64)
    k = stored(rows[:, queries : queries + keys].reshape(len(rows), kv_heads, head_dim), kv_dtype)
    v = stored(rows[:, queries + keys :].reshape(len(rows), kv_heads, head_dim), kv_dtype)
    k, v = np.repeat(k, heads // kv_heads, axis=1), np.repeat(v, heads // kv_heads, axis=1)
    scores = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(head_dim)
    i, j = np.indices((len(rows), len(rows)))
    seen = (j <= i) & (j > i - (window or len(rows)))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", weights, v).reshape(len(rows), queries)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "bf16", "int16", "int8"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "window"),
    [(4, 1, 20, None), (2, 2, 64, 5), (6, 2, 8, 16), (3, 1, 80, 33), (1, 1, 1, 1)],
)
def test_ragged_batches_in_any_chunks(
    kernels: str,
    kv_dtype: Literal["f32", "f16", "bf16", "int16", "int8"],
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int | None,
) -> None:
    rng = np.random.default_rng(10)
    program = attention_program(heads, kv_heads, head_dim, window)
    table = rng.standard_normal(program.weights[0].shape, dtype=np.float32) * np.float32(1.5)
    table[-1] = np.nan
    executor = NativeExecutor(
        program,
        {"table": f32_tensor(table), "one": f32_tensor(np.eye(*program.weights[1].shape, dtype=np.float32))},
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
    expected = [expected_attention(table[p], heads, kv_heads, head_dim, window, kv_dtype) for p in prompts]
    width = heads * head_dim

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


@cache
def long_context(
    heads: int, kv_heads: int, window: int | None, head_dim: int, length: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], list[int], F64]:
    """A table, a prompt, its pages, and what is expected of them, which is the same for all kernels."""
    rng = np.random.default_rng(12)
    shape = attention_program(heads, kv_heads, head_dim, window).weights[0].shape
    table = rng.standard_normal(shape, dtype=np.float32)
    prompt = rng.integers(0, VOCAB, length)
    pages = rng.permutation(-(-length // 16)).tolist()
    return table, prompt, pages, expected_attention(table[prompt], heads, kv_heads, head_dim, window, "f16")


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(4, 1, None), (2, 2, 700), (5, 1, 600)])
def test_long_contexts_are_the_same_bits_whoever_computes_their_segments(
    kernels: str, heads: int, kv_heads: int, window: int | None
) -> None:
    head_dim, length = 16, 1300
    program = attention_program(heads, kv_heads, head_dim, window)
    table, prompt, pages, expected = long_context(heads, kv_heads, window, head_dim, length)
    weights = {"table": f32_tensor(table), "one": f32_tensor(np.eye(*program.weights[1].shape, dtype=np.float32))}
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
        whole = executor.run(batch_of(Chunk(prompt, 0, pages)))[:, : heads * head_dim]
        np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5)
        # Alone a token's segments are shared out among the threads.
        for end in (511, 512, 513, 1024, 1025, 1100, 1300):
            alone = executor.run(batch_of(Chunk(prompt[end - 1 : end], end - 1, pages)))[0, : heads * head_dim]
            np.testing.assert_array_equal(alone, whole[end - 1])
        results.append(whole)
        executor.close()
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


@pytest.mark.parametrize("kernels", KERNELS)
def test_large_scores_do_not_overflow(kernels: str) -> None:
    program = attention_program(1, 1, 16, None)
    table = np.random.default_rng(11).standard_normal(program.weights[0].shape, dtype=np.float32) * np.float32(30)
    executor = NativeExecutor(
        program,
        {"table": f32_tensor(table), "one": f32_tensor(np.eye(VOCAB, 16, dtype=np.float32))},
        num_pages=4,
        max_tokens=64,
        max_positions=64,
        kv_dtype="f32",
        kernels=kernels,
    )
    tokens = list(range(50))
    expected = expected_attention(table[tokens], 1, 1, 16, None, "f32")
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
