"""Matrix products and table lookups over packed weights, against numpy, for every format and kernel table."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from support.native import KERNELS, KINDS, Kind, as_multiplied, bare_program, f32_tensor, product_program, single
from windlass.native import NativeExecutor
from windlass.program.ops import Embed, Linear, Logits, Value
from windlass.program.program import Program
from windlass.quantization import Format, Tensor

SHAPES = [(1, 1), (33, 40), (70, 131), (64, 192), (100, 33)]


def run_tokens(executor: NativeExecutor, tokens: list[int]) -> NDArray[np.float32]:
    return executor.run(single(tokens))


def executor_for(program: Program, weights: dict[str, Tensor], kernels: str, threads: int = 1) -> NativeExecutor:
    return NativeExecutor(
        program, weights, num_pages=8, max_tokens=80, max_positions=128, num_threads=threads, kernels=kernels
    )


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_is_right_and_the_same_bits_for_every_number_of_tokens(
    kernels: str, kind: Kind, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape, dtype=np.float32)
    weight = kind.tensor(rng, *shape)
    program, weights = product_program(x, weight)
    executor = executor_for(program, weights, kernels)

    tokens = [int(token) for token in rng.integers(0, shape[0], 70)]
    alone = np.concatenate([run_tokens(executor, [token]) for token in tokens])
    expected = as_multiplied(x, weight)[tokens].astype(np.float64) @ weight.dequantize().astype(np.float64).T
    magnitude = np.abs(x[tokens]).astype(np.float64) @ np.abs(weight.dequantize()).T
    assert np.all(np.abs(alone - expected) <= 2e-6 * magnitude)

    for count in (2, 3, 4, 5, 6, 7, 11, 12, 13, 24, 63, 64, 65, 70):
        np.testing.assert_array_equal(run_tokens(executor, tokens[:count]), alone[:count])
    executor.close()


@pytest.mark.parametrize("kernels", KERNELS)
def test_all_counts_of_tokens_and_threads_give_the_same_bits(kernels: str) -> None:
    rng = np.random.default_rng(2)
    program, weights = product_program(
        rng.standard_normal((700, 600), dtype=np.float32), KINDS[7].tensor(rng, 700, 600)
    )
    executors = [executor_for(program, weights, kernels, threads) for threads in (1, 2, 3)]
    tokens = [int(token) for token in rng.integers(0, 700, 70)]
    whole = run_tokens(executors[0], tokens)
    for count in range(1, 71):
        for executor in executors:
            np.testing.assert_array_equal(run_tokens(executor, tokens[:count]), whole[:count])
    for executor in executors:
        executor.close()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_lookup_gives_the_dequantized_rows_exactly(kernels: str, kind: Kind) -> None:
    size = 83
    weights = {"table": kind.tensor(np.random.default_rng(3), size, size), "one": f32_tensor(np.eye(size))}
    value = Value(0, 0, size)
    program = bare_program([Embed(value, "table"), Logits(value, "one")], weights, [size], size)
    executor = executor_for(program, weights, kernels)
    tokens = [82, 0, 31, 32, 5]
    np.testing.assert_array_equal(run_tokens(executor, tokens), weights["table"].dequantize()[tokens])
    executor.close()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("tokens", [[3], [3, 1, 4, 1, 5, 9, 2]], ids=len)
def test_bias_and_columns_of_wider_buffers(kernels: str, tokens: list[int]) -> None:
    rng = np.random.default_rng(4)
    size, inner = 50, 37
    weights = {
        "table": f32_tensor(rng.standard_normal((size, size), dtype=np.float32)),
        "w": Kind(Format.BF16).tensor(rng, inner, 20),
        "bias": Tensor(Format.F16, (inner,), rng.standard_normal(inner).astype(np.float16)),
        "head": f32_tensor(rng.standard_normal((size, inner), dtype=np.float32)),
    }
    x, out = Value(0, 0, size), Value(1, 0, inner)
    ops = [Embed(x, "table"), Linear(out, x.columns(7, 20), "w", "bias"), Logits(out, "head")]
    executor = executor_for(bare_program(ops, weights, [size, inner], size), weights, kernels)
    rows = weights["table"].dequantize()[tokens, 7:27] @ weights["w"].dequantize().T + weights["bias"].dequantize()
    np.testing.assert_allclose(run_tokens(executor, tokens), rows @ weights["head"].dequantize().T, rtol=0, atol=1e-4)
    executor.close()


def test_weights_may_be_read_only_oddly_placed_and_strided() -> None:
    rng = np.random.default_rng(5)
    shape = (40, 66)
    plain = Kind(Format.F16).tensor(rng, *shape)
    raw = np.zeros(2 + plain.data.nbytes, dtype=np.uint8)
    raw[2:] = plain.data.reshape(-1).view(np.uint8)
    odd = raw[2:].view(np.float16).reshape(shape)
    odd.flags.writeable = False
    transposed = np.asfortranarray(plain.data)
    x = rng.standard_normal(shape, dtype=np.float32)
    results = []
    for data in (plain.data, odd, transposed):
        executor = executor_for(*product_program(x, Tensor(Format.F16, shape, data)), KERNELS[-1])
        results.append(run_tokens(executor, [1, 2, 3]))
        executor.close()
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_a_group_with_scale_zero_is_zero() -> None:
    rng = np.random.default_rng(6)
    weight = Kind(Format.INT4, 32).tensor(rng, 32, 64)
    assert weight.scales is not None
    weight.scales[:] = 0
    executor = executor_for(*product_program(np.ones((32, 64), dtype=np.float32), weight), KERNELS[-1])
    assert not run_tokens(executor, [0, 1]).any()
    executor.close()


def test_packed_int4_stays_small() -> None:
    weight = Kind(Format.INT4, 32, one_zero=True).tensor(np.random.default_rng(7), 1024, 1024)
    weights = {"w": weight}
    value = Value(0, 0, 1024)
    program = bare_program([Embed(value, "w"), Logits(value, "w")], weights, [1024], 1024)
    executor = executor_for(program, weights, KERNELS[0])
    assert executor.weight_bytes <= 4.6 / 8 * 1024 * 1024
    executor.close()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("codes", "bits"), [(32, 5), (33, 6), (64, 6), (65, 8)])
def test_int8_codes_of_few_values_are_small_and_give_the_same_bits(kernels: str, codes: int, bits: int) -> None:
    rng = np.random.default_rng(8)
    rows, columns = 1024, 192
    data = (np.arange(rows * columns) % codes - codes // 2).astype(np.int8).reshape(rows, columns)
    scales = rng.standard_normal((rows, columns // 32)).astype(np.float16)
    narrow = Tensor(Format.INT8, (rows, columns), data, 32, scales)
    x = rng.standard_normal((rows, columns), dtype=np.float32)
    whole = data.copy()
    whole[-1, :2] = -128, 127
    wide = Tensor(Format.INT8, (rows, columns), whole, 32, scales)
    results = []
    for weight in (narrow, wide):
        executor = executor_for(*product_program(x, weight), kernels)
        results.append(run_tokens(executor, list(range(9)))[:, :-1])
        own = executor.weight_bytes - x.nbytes
        assert abs(own - rows * columns * ((bits if weight is narrow else 8) + 0.5) / 8) < 1000
        executor.close()
    np.testing.assert_array_equal(results[0], results[1])


def int4_weight(**changes: object) -> Tensor:
    fields = {
        "format": Format.INT4,
        "shape": (8, 64),
        "data": np.zeros((8, 32), dtype=np.uint8),
        "group_size": 32,
        "scales": np.ones((8, 2), dtype=np.float16),
        "zeros": np.zeros((8, 2), dtype=np.uint8),
    }
    return Tensor(**{**fields, **changes})  # type: ignore[arg-type]


FP8 = {
    "format": Format.FP8,
    "data": np.zeros((8, 64), dtype=np.uint8),
    "group_size": 64,
    "scales": np.ones((8, 1), dtype=np.float32),
    "zeros": None,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zeros": None}, "or, if int4, zeros"),
        ({"scales": None}, "have groups and scales"),
        ({"group_size": 0}, "have groups and scales"),
        ({"data": np.zeros((8, 31), dtype=np.uint8)}, r"codes of a weight must be \[8, 32\]"),
        ({"data": np.zeros((8, 32), dtype=np.int8)}, "codes have the wrong dtype"),
        ({"scales": np.ones((8, 2), dtype=np.float64)}, "scales have the wrong dtype"),
        ({"scales": np.ones((8, 3), dtype=np.float16)}, r"scales of a weight must be \[8, 2\]"),
        ({"shape": (7, 64)}, "has shape"),
        ({"order": np.arange(63, dtype=np.int32)}, "has the number of each column"),
        ({"order": np.arange(1, 65, dtype=np.int32)}, "has the number of each column"),
        ({"order": np.arange(-1, 63, dtype=np.int32)}, "has the number of each column"),
        ({**FP8, "order": np.arange(64, dtype=np.int32)}, "of these int8 and int4 may have an order"),
        ({**FP8, "group_size": 32}, "must be whole rows, or multiples of 64"),
        ({**FP8, "scales": np.ones((8, 1), dtype=np.float16)}, "scales have the wrong dtype"),
        ({**FP8, "scales": None}, "have groups and scales"),
        ({**FP8, "zeros": np.zeros((8, 1), dtype=np.uint8)}, "have groups and scales"),
    ],
)
def test_a_wrong_weight_is_refused(changes: dict[str, object], message: str) -> None:
    program, weights = product_program(np.ones((8, 64), dtype=np.float32), int4_weight())
    weights["w"] = int4_weight(**changes)
    with pytest.raises(ValueError, match=message):
        executor_for(program, weights, KERNELS[-1])
