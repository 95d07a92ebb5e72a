"""Whole programs: against the reference executor, and the same bits in whatever way the work is cut (L26)."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from support.native import KERNELS, KINDS, Chunk, Kind, LittleModel, batch_of, single
from windlass.native import NativeExecutor, kv_bytes_per_page
from windlass.program.executor import Batch
from windlass.program.reference import ReferenceExecutor
from windlass.quantization import Format

LIMITS = {"num_pages": 24, "max_tokens": 160, "max_positions": 128}
KV = Literal["f32", "f16", "bf16", "int16", "int8"]


def native(model: LittleModel, kernels: str, kv_dtype: KV = "f32", threads: int = 2) -> NativeExecutor:
    return NativeExecutor(
        model.program(), model.weights(), **LIMITS, num_threads=threads, kv_dtype=kv_dtype, kernels=kernels
    )


def ragged(rng: np.random.Generator) -> list[Chunk]:
    lengths, pages = (45, 1, 70, 17), ([9, 2, 4], [0], [3, 1, 7, 5, 8], [11, 10])
    return [Chunk(rng.integers(0, 101, n).tolist(), 0, p) for n, p in zip(lengths, pages, strict=True)]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_format_agrees_with_the_reference(kernels: str, kind: Kind) -> None:
    model = LittleModel(kind=kind)
    executor = native(model, kernels)
    reference = ReferenceExecutor(model.program(), model.weights(), **LIMITS)
    batch = batch_of(*ragged(np.random.default_rng(1)))
    expected = reference.run(batch)
    # The activations are quantized too where the weights are: to 15 bits for int8, to 8 bits for int4.
    tolerance = {Format.INT8: 2e-4, Format.INT4: 3e-2}.get(kind.format, 1e-5)
    np.testing.assert_allclose(executor.run(batch), expected, rtol=0, atol=tolerance * np.abs(expected).max())
    executor.close()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    ("kv_dtype", "tolerance"), [("f32", 1e-5), ("f16", 1e-3), ("bf16", 1e-2), ("int16", 1e-3), ("int8", 2e-2)]
)
@pytest.mark.parametrize("window", [None, 20])
def test_decoding_step_by_step_agrees_with_the_reference(
    kernels: str, kv_dtype: KV, tolerance: float, window: int | None
) -> None:
    # With f16 and bf16 a last-bit difference before rounding becomes one of the stored type's bits.
    model = LittleModel(window=window)
    executor = native(model, kernels, kv_dtype)
    reference = ReferenceExecutor(model.program(), model.weights(), **LIMITS, kv_dtype=kv_dtype)
    tokens = np.random.default_rng(2).integers(0, 101, 60).tolist()
    pages = [5, 3, 8, 0]
    steps = [batch_of(Chunk(tokens[:30], 0, pages), rows=[29])]
    steps += [batch_of(Chunk(tokens[i : i + 1], i, pages)) for i in range(30, 60)]
    for batch in steps:
        expected = reference.run(batch)
        np.testing.assert_allclose(executor.run(batch), expected, rtol=0, atol=tolerance * np.abs(expected).max())
    executor.close()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[7]], ids=str)
@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "bf16", "int16", "int8"])
def test_same_bits_alone_batched_chunked_and_on_any_threads(kernels: str, kind: Kind, kv_dtype: KV) -> None:
    model = LittleModel(kind=kind)
    chunks = ragged(np.random.default_rng(3))
    whole: list[NDArray[np.float32]] = []
    for threads in (1, 2, 3):
        executor = native(model, kernels, kv_dtype, threads)
        whole.append(executor.run(batch_of(*chunks)))
        executor.close()
    np.testing.assert_array_equal(whole[1], whole[0])
    np.testing.assert_array_equal(whole[2], whole[0])

    longest, start = chunks[2], len(chunks[0].tokens) + len(chunks[1].tokens)
    expected = whole[0][start : start + len(longest.tokens)]
    executor = native(model, kernels, kv_dtype)
    np.testing.assert_array_equal(executor.run(single(longest.tokens)), expected)

    for cuts in ([0, 16, 32, 70], [0, 5, 6, 38, 39, 69, 70], list(range(71))):
        pieces = []
        for begin, end in itertools.pairwise(cuts):
            chunk = Chunk(longest.tokens[begin:end], begin, longest.pages)
            others = [Chunk(chunks[0].tokens, 0, chunks[0].pages)] if begin % 2 else []
            logits = executor.run(batch_of(*others, chunk))
            pieces.append(logits[-(end - begin) :])
        np.testing.assert_array_equal(np.concatenate(pieces), expected)
    executor.close()


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_prefix_in_shared_pages_gives_the_same_bits(kernels: str) -> None:
    model = LittleModel()
    executor = native(model, kernels)
    rng = np.random.default_rng(4)
    prefix, first, second = (rng.integers(0, 101, n).tolist() for n in (32, 5, 9))
    alone = executor.run(batch_of(Chunk(prefix + second, 0, [0, 1, 2])))[32:]
    executor.run(batch_of(Chunk(prefix + first, 0, [3, 4, 5]), rows=[]))
    shared = executor.run(batch_of(Chunk([7], 37, [3, 4, 5]), Chunk(second, 32, [3, 4, 6])))[1:]
    np.testing.assert_array_equal(shared, alone)
    executor.close()


def test_only_the_wanted_rows_in_the_wanted_order() -> None:
    executor = native(LittleModel(), KERNELS[-1])
    tokens = list(range(20))
    every = executor.run(single(tokens))
    batch = single(tokens)
    for rows in ([19], [3, 3, 0], []):
        wanted = Batch(
            batch.token_ids,
            batch.positions,
            batch.token_starts,
            batch.page_ids,
            batch.page_starts,
            np.array(rows, dtype=np.int32),
        )
        logits = executor.run(wanted)
        assert logits.shape == (len(rows), 101)
        np.testing.assert_array_equal(logits, every[rows])
    executor.close()


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "bf16", "int16", "int8"])
def test_kv_cache_size(kv_dtype: KV) -> None:
    model = LittleModel(head_dim=64, kv_heads=2, layers=3)
    per_page = kv_bytes_per_page(model.program(), kv_dtype)
    element = {"f32": 4, "f16": 2, "bf16": 2, "int16": 2, "int8": 1}[kv_dtype]
    scales = 16 * 4 if kv_dtype.startswith("int") else 0
    assert per_page == 3 * 2 * 2 * (64 * 16 * element + scales)
    executor = native(model, KERNELS[-1], kv_dtype)
    assert 0 <= executor.kv_cache_bytes - LIMITS["num_pages"] * per_page < 2**21
    executor.close()
