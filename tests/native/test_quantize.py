"""Quantization in the native core gives the bits of the numpy one, which is what the formula says."""

from __future__ import annotations

import numpy as np
import pytest

from windlass.native.quantize import quantize
from windlass.quantization import SCHEMES, Format, Tensor, f32_to_bf16
from windlass.quantization import quantize as oracle

GROUPED = [scheme for scheme in SCHEMES.values() if scheme.grouped]
DTYPES = [scheme for scheme in SCHEMES.values() if not scheme.grouped]
FORMATS = (Format.F32, Format.F16, Format.BF16)


def stored(values: np.ndarray, format: Format) -> Tensor:  # noqa: A002
    if format is Format.BF16:
        return Tensor(format, values.shape, f32_to_bf16(values))
    return Tensor(format, values.shape, values.astype(np.float16 if format is Format.F16 else np.float32))


def awkward(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Rows of many sizes: ordinary ones, whole multiples of a step (ties), subnormal scales, zeros, outliers."""
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    values[0::8] = rng.integers(-14, 15, values[0::8].shape) / 2
    values[1::8] *= np.float32(2.0**-20)
    values[2::8] *= np.float32(2.0**-24)
    values[3::8] = 0
    values[4::8, ::7] *= 60
    values[5::8] *= np.float32(2.0**-130)
    values[6::8] *= 1000
    return values


def assert_same(ours: Tensor, wanted: Tensor) -> None:
    assert (ours.format, ours.shape, ours.group_size) == (wanted.format, wanted.shape, wanted.group_size)
    for mine, theirs in ((ours.data, wanted.data), (ours.scales, wanted.scales), (ours.zeros, wanted.zeros)):
        if theirs is None:
            assert mine is None
        else:
            assert mine is not None
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("scheme", GROUPED, ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("columns", [1, 31, 32, 40, 77, 128, 360])
def test_the_bits_are_those_of_the_formula(scheme, format, columns) -> None:  # noqa: A002
    rng = np.random.default_rng(columns)
    with np.errstate(over="ignore"):
        weight = stored(awkward(rng, 133, columns), format)
    assert_same(quantize(weight, scheme, num_threads=3), oracle(weight, scheme))


@pytest.mark.parametrize("scheme", DTYPES, ids=str)
def test_a_scheme_without_groups_gives_its_dtype(scheme) -> None:
    weight = stored(np.ones((2, 3), np.float32), Format.F32)
    assert_same(quantize(weight, scheme), oracle(weight, scheme))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    values = np.ones((70, 64), np.float32)
    values[69, 63] = bad
    with pytest.raises(ValueError, match="not finite"):
        quantize(stored(values, Format.BF16), SCHEMES["q4f16_1"])


def test_what_does_not_fit_half_scales_is_refused() -> None:
    values = np.full((70, 64), 3e38, np.float32)
    with pytest.raises(ValueError, match="too large for the float16 scales of q4f16_1"):
        quantize(stored(values, Format.F32), SCHEMES["q4f16_1"])
    quantize(stored(values, Format.F32), SCHEMES["q4f32_1"])


@pytest.mark.parametrize("bits", range(0, 1 << 16, 1 << 12))
def test_halves_round_as_numpy_rounds_them(bits: int) -> None:
    """Scales on and beside every tie between two halves, in a range of exponents."""
    halves = np.arange(bits, bits + (1 << 12), dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = np.abs(halves[np.isfinite(halves) & (np.abs(halves) < 60000)])
    if halves.size == 0:
        return
    step = np.nextafter(halves.astype(np.float16), np.float16(65504)).astype(np.float32)
    ties = (halves + step) / 2
    for scale in (halves, ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e9))):
        values = np.repeat((scale * np.float32(7))[:, np.newaxis], 32, axis=1)
        assert_same(
            quantize(stored(values, Format.F32), SCHEMES["q4f16_1"]),
            oracle(stored(values, Format.F32), SCHEMES["q4f16_1"]),
        )
