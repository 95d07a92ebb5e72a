"""The registry of schemes, and quantizing against the formula written out number by number."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from windlass.quantization import SCHEMES, Format, Scheme, Tensor, bf16_to_f32, cast, f32_to_bf16, get_scheme, quantize
from windlass.quantization import schemes as schemes_module

GROUPED = [scheme for scheme in SCHEMES.values() if scheme.grouped]


def test_the_registry_says_what_the_format_says() -> None:
    table = {name: (s.bits, s.group_size, s.model_dtype.value, s.layout) for name, s in SCHEMES.items()}
    assert table == {
        "q0f16": (0, 0, "f16", "NK"),
        "q0bf16": (0, 0, "bf16", "NK"),
        "q0f32": (0, 0, "f32", "NK"),
        "q3f16_0": (3, 40, "f16", "KN"),
        "q3f16_1": (3, 40, "f16", "NK"),
        "q4f16_0": (4, 32, "f16", "KN"),
        "q4bf16_0": (4, 32, "bf16", "KN"),
        "q4f16_1": (4, 32, "f16", "NK"),
        "q4bf16_1": (4, 32, "bf16", "NK"),
        "q4f32_1": (4, 32, "f32", "NK"),
        "q4f16_2": (4, 32, "f16", "NK"),
        "q8f16_1": (8, 32, "f16", "NK"),
    }


def test_roles() -> None:
    assert [role for role in ("linear", "embedding", "head", "plain") if SCHEMES["q4f16_1"].quantizes(role)] == [
        "linear",
        "embedding",
        "head",
    ]
    assert [role for role in ("linear", "embedding", "head", "plain") if SCHEMES["q4f16_2"].quantizes(role)] == [
        "linear"
    ]
    assert not SCHEMES["q0f16"].quantizes("linear")


def test_unknown_scheme_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'q5k' is not supported; supported: q0f16, .*q8f16_1"):
        get_scheme("q5k")


def to_half(value: float) -> float:
    return float(struct.unpack("<e", struct.pack("<e", value))[0])


def to_bfloat(value: float) -> float:
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    low = bits & 0xFFFF
    bits >>= 16
    if low > 0x8000 or (low == 0x8000 and bits & 1):
        bits += 1
    return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


ROUND = {Format.F32: lambda value: value, Format.F16: to_half, Format.BF16: to_bfloat}


def slow_quantize(weight: NDArray[np.float32], scheme: Scheme) -> tuple[list[list[int]], list[list[float]]]:
    """Codes and scales by the formula, one number at a time."""
    codes, scales = [], []
    for row in weight:
        row_codes: list[int] = []
        row_scales: list[float] = []
        for start in range(0, len(row), scheme.group_size):
            group = row[start : start + scheme.group_size]
            largest = np.float32(max(abs(float(number)) for number in group))
            scale = ROUND[scheme.model_dtype](float(largest / np.float32(scheme.max_int)))
            row_scales.append(scale)
            for number in group:
                if scale == 0:
                    row_codes.append(scheme.max_int)
                    continue
                position = float(number / np.float32(scale) + np.float32(scheme.max_int))
                row_codes.append(min(max(round(position), 0), 2 * scheme.max_int))  # round: ties to even
        codes.append(row_codes)
        scales.append(row_scales)
    return codes, scales


def codes_of(tensor: Tensor, scheme: Scheme) -> NDArray[np.int64]:
    rows, columns = tensor.shape
    if tensor.format is Format.INT8:
        return tensor.data.astype(np.int64) + scheme.max_int
    pairs = tensor.data.astype(np.int64)
    return np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(rows, -1)[:, :columns]


def random_weight(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) * np.float32(0.05)
    weight[0, : min(columns, 40)] = 0  # a group of zeros
    weight[1, 0] = 3.0  # an outlier: everything else in its group is small
    weight[-1] *= 1e-6  # scales in float16's subnormal range, some of them zero
    return weight


@pytest.mark.parametrize("columns", [160, 200, 33, 7])
@pytest.mark.parametrize("scheme", GROUPED, ids=lambda scheme: scheme.name)
def test_codes_and_scales_follow_the_formula(scheme: Scheme, columns: int) -> None:
    weight = random_weight(6, columns)
    tensor = quantize(weight, scheme)
    codes, scales = slow_quantize(weight, scheme)
    assert codes_of(tensor, scheme).tolist() == codes
    assert tensor.scales is not None
    assert tensor.scales.tolist() == scales
    assert tensor.scales.dtype == (np.float16 if scheme.model_dtype is Format.F16 else np.float32)
    assert tensor.group_size == scheme.group_size
    assert tensor.shape == (6, columns)
    if tensor.format is Format.INT4:
        assert tensor.zeros is not None
        assert (tensor.zeros == scheme.max_int).all()
        if columns % 2:
            assert (tensor.data[:, -1] >> 4 == 0).all()


@pytest.mark.parametrize("scheme", GROUPED, ids=lambda scheme: scheme.name)
def test_a_weight_is_off_by_half_a_step_at_most(scheme: Scheme) -> None:
    weight = random_weight(5, 96)[1:-1]  # in the subnormal range the rounded scale itself is far off
    tensor = quantize(weight, scheme)
    assert tensor.scales is not None
    step = np.repeat(tensor.scales.astype(np.float64), scheme.group_size, axis=1)[:, :96]
    error = np.abs(tensor.dequantize().astype(np.float64) - weight)
    # The largest number of a group lies max_int steps out; the rounding of the step counts that often.
    rounding = {Format.F32: 2.0**-24, Format.F16: 2.0**-11, Format.BF16: 2.0**-8}[scheme.model_dtype]
    assert (error <= step * (0.5 + 2 * scheme.max_int * rounding)).all()


def test_a_group_of_zeros_is_exactly_zero() -> None:
    for scheme in GROUPED:
        tensor = quantize(np.zeros((2, 50), np.float32), scheme)
        assert not tensor.dequantize().any()


@pytest.mark.parametrize("scheme", [SCHEMES["q4f16_1"], SCHEMES["q8f16_1"]], ids=lambda scheme: scheme.name)
def test_half_width_sources_give_the_codes_of_their_values(scheme: Scheme) -> None:
    weight = random_weight(4, 70)
    half = Tensor(Format.F16, weight.shape, weight.astype(np.float16))
    bfloat = Tensor(Format.BF16, weight.shape, f32_to_bf16(weight))
    for source in (half, bfloat):
        expected = quantize(source.dequantize(), scheme)
        got = quantize(source, scheme)
        assert np.array_equal(got.data, expected.data)
        assert np.array_equal(got.scales, expected.scales)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(23, 65)
    whole = quantize(weight, SCHEMES["q4f16_1"])
    narrow = cast(Tensor(Format.F32, weight.shape, weight), Format.BF16)
    monkeypatch.setattr(schemes_module, "_BLOCK_ELEMENTS", 5 * 65)
    blocks = quantize(weight, SCHEMES["q4f16_1"])
    assert np.array_equal(whole.data, blocks.data)
    assert np.array_equal(whole.scales, blocks.scales)
    assert np.array_equal(cast(Tensor(Format.F32, weight.shape, weight), Format.BF16).data, narrow.data)


def test_read_only_and_strided_sources_are_fine() -> None:
    weight = random_weight(4, 128)
    strided = np.ascontiguousarray(weight.repeat(2, axis=1))[:, ::2]
    strided.flags.writeable = False
    assert np.array_equal(quantize(strided, SCHEMES["q4f16_1"]).data, quantize(weight, SCHEMES["q4f16_1"]).data)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["q4f16_1", "q8f16_1", "q4bf16_1", "q0f16", "q0bf16"])
def test_numbers_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    weight = np.ones((2, 64), np.float32)
    weight[1, 40] = bad
    with pytest.raises(ValueError, match="not finite"):
        quantize(weight, SCHEMES[name])


def test_numbers_too_large_for_the_dtype_are_refused() -> None:
    weight = np.full((1, 32), 1e6, np.float32)
    with pytest.raises(ValueError, match="too large for f16"):
        quantize(weight, SCHEMES["q0f16"])
    with pytest.raises(ValueError, match="too large for the float16 scales of q4f16_1"):
        quantize(weight, SCHEMES["q4f16_1"])
    assert quantize(weight, SCHEMES["q4bf16_1"]).dequantize()[0, 0] == pytest.approx(1e6, rel=0.01)


def test_only_float_matrices_are_quantized() -> None:
    with pytest.raises(ValueError, match=r"only a float matrix .* shape \[64\]"):
        quantize(np.ones(64, np.float32), SCHEMES["q4f16_1"])
    quantized = quantize(np.ones((1, 32), np.float32), SCHEMES["q4f16_1"])
    with pytest.raises(ValueError, match="only a float matrix"):
        quantize(quantized, SCHEMES["q8f16_1"])
    with pytest.raises(ValueError, match="cannot be cast from int4"):
        cast(quantized, Format.F16)


def test_schemes_that_do_not_quantize_cast() -> None:
    weight = np.array([1.0, -2.5, 1 + 2**-8, 1 + 3 * 2**-8, 3.0e38], np.float32)  # two ties of bfloat16
    tensor = Tensor(Format.F32, weight.shape, weight)
    assert quantize(tensor, SCHEMES["q0f32"]) is tensor
    bfloat = quantize(tensor, SCHEMES["q0bf16"])
    assert bfloat.format is Format.BF16
    assert bf16_to_f32(bfloat.data[:4]).tolist() == [1.0, -2.5, 1.0, 1 + 4 * 2**-8]
    half = quantize(Tensor(Format.BF16, (4,), bfloat.data[:4]), SCHEMES["q0f16"])
    assert half.format is Format.F16
    assert half.data.tolist() == [1.0, -2.5, 1.0, 1 + 4 * 2**-8]
