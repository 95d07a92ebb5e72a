"""The packed layouts of MLC files: by hand, against slow packing, and back again."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from windlass.quantization import (
    SCHEMES,
    Format,
    Scheme,
    Tensor,
    bf16_to_f32,
    f32_to_bf16,
    mlc_pack,
    mlc_shapes,
    mlc_unpack,
    quantize,
)

GROUPED = [scheme for scheme in SCHEMES.values() if scheme.grouped]


def row(*numbers: float) -> NDArray[np.float32]:
    return np.array([numbers], np.float32)


def test_four_bits_by_hand() -> None:
    # max|w| = 7 makes the scale 1; codes 14 0 7 8 6 10 4 10, of which 9.5 and 4.5 were ties.
    tensor = quantize(row(7, -7, 0, 1, -1, 2.5, -2.5, 3.4), SCHEMES["q4f16_1"])
    words, scales = mlc_pack(tensor, SCHEMES["q4f16_1"])
    assert words.tobytes() == bytes([0x0E, 0x87, 0xA6, 0xA4]) + bytes(12)
    assert scales.tobytes() == bytes([0x00, 0x3C])


def test_three_bits_by_hand() -> None:
    # Scale 1; codes 6 0 3 4 2 5 1 4 2 3 in the first word, lowest bits first, and 6 in the second.
    tensor = quantize(row(3, -3, 0, 1, -1, 2, -2, 1.5, -1.5, 0.4, 3), SCHEMES["q3f16_1"])
    words, scales = mlc_pack(tensor, SCHEMES["q3f16_1"])
    assert words.tolist() == [[0b00_011_010_100_001_101_010_100_011_000_110, 6, 0, 0]]
    assert scales.tolist() == [[1.0]]


def test_eight_bits_by_hand() -> None:
    tensor = quantize(row(127, -127, 0, 1, 2), SCHEMES["q8f16_1"])
    words, scales = mlc_pack(tensor, SCHEMES["q8f16_1"])
    assert words.tolist() == [[0x80_7F_00_FE, 0x81, 0, 0, 0, 0, 0, 0]]
    assert scales.tolist() == [[1.0]]


def test_bfloat16_scales_are_bit_patterns() -> None:
    _, scales = mlc_pack(quantize(row(7, 3), SCHEMES["q4bf16_1"]), SCHEMES["q4bf16_1"])
    assert scales.dtype == np.uint16
    assert scales.tolist() == [[0x3F80]]


def slow_pack(tensor: Tensor, scheme: Scheme) -> NDArray[np.uint32]:
    """NK words, code by code, from the dequantized weights."""
    rows, columns = tensor.shape
    per_word = 32 // scheme.bits
    words = [[0] * scheme.words(columns) for _ in range(rows)]
    for n in range(rows):
        for k in range(columns):
            if tensor.format is Format.INT8:
                code = int(tensor.data[n, k]) + 127
            else:
                code = int(tensor.data[n, k // 2]) >> (4 * (k % 2)) & 15
            words[n][k // per_word] |= code << (k % per_word * scheme.bits)
    return np.array(words, np.uint32)


@pytest.mark.parametrize("columns", [160, 200, 33, 10])
@pytest.mark.parametrize("role", ["linear", "embedding", "head"])
@pytest.mark.parametrize("scheme", GROUPED, ids=lambda scheme: scheme.name)
def test_packing_and_unpacking(scheme: Scheme, role: str, columns: int) -> None:
    weight = np.random.default_rng(1).standard_normal((9, columns)).astype(np.float32)
    tensor = quantize(weight, scheme)
    assert tensor.scales is not None
    words, scales = mlc_pack(tensor, scheme, role=role)
    assert (words.shape, scales.shape) == mlc_shapes(tensor.shape, scheme, role=role)
    assert words.flags.c_contiguous
    assert scales.flags.c_contiguous
    expected_scales = f32_to_bf16(tensor.scales) if scheme.model_dtype is Format.BF16 else tensor.scales
    transposed = scheme.name.endswith("_0") and role != "embedding"
    assert np.array_equal(words.T if transposed else words, slow_pack(tensor, scheme))
    assert np.array_equal(scales.T if transposed else scales, expected_scales)

    back = mlc_unpack(words, scales, (9, columns), scheme, role=role)
    assert back.format is tensor.format
    assert back.shape == tensor.shape
    assert np.array_equal(back.data, tensor.data)
    assert np.array_equal(back.scales, tensor.scales)
    assert np.array_equal(back.dequantize(), tensor.dequantize())
    assert back.data.flags.c_contiguous


def test_four_bit_words_are_not_copied() -> None:
    tensor = quantize(np.ones((4, 64), np.float32), SCHEMES["q4f16_1"])
    words, scales = mlc_pack(tensor, SCHEMES["q4f16_1"])
    words.flags.writeable = False
    assert np.shares_memory(mlc_unpack(words, scales, (4, 64), SCHEMES["q4f16_1"]).data, words)


def test_float32_scales_are_taken_as_stored() -> None:
    scheme = SCHEMES["q4f32_1"]
    words, scales = mlc_pack(quantize(row(*range(32)), scheme), scheme)
    rounded = bf16_to_f32(f32_to_bf16(scales))
    back = mlc_unpack(words, rounded, (1, 32), scheme)
    assert back.scales is not None
    assert back.scales.tolist() == rounded.tolist() != scales.tolist()


def test_a_tensor_of_another_scheme_is_refused() -> None:
    int4 = quantize(np.ones((2, 80), np.float32), SCHEMES["q4f16_1"])
    for other in ("q8f16_1", "q3f16_1"):
        with pytest.raises(ValueError, match=f"is not {other}"):
            mlc_pack(int4, SCHEMES[other])
    shifted = Tensor(Format.INT4, (2, 80), int4.data, 32, int4.scales, np.full((2, 3), 8, np.uint8))
    with pytest.raises(ValueError, match="is not q4f16_1"):
        mlc_pack(shifted, SCHEMES["q4f16_1"])


def test_words_of_another_shape_are_refused() -> None:
    words, scales = mlc_pack(quantize(np.ones((2, 64), np.float32), SCHEMES["q4f16_1"]), SCHEMES["q4f16_1"])
    with pytest.raises(ValueError, match=r"do not fit \[2, 96\]"):
        mlc_unpack(words, scales, (2, 96), SCHEMES["q4f16_1"])
    with pytest.raises(ValueError, match=r"do not fit \[2, 64\]"):
        mlc_unpack(words, scales, (2, 64), SCHEMES["q4f16_0"])
