"""The block formats of GGUF files: their layouts, and what numbers they stand for.

Layouts and formulas are those of ggml (github.com/ggml-org/ggml, ``ggml-common.h`` and ``ggml-quants.c``). A block has
``block`` consecutive numbers of a row in ``block_bytes`` bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from windlass.quantization.tensor import Factors, Format, Tensor

Bytes: TypeAlias = NDArray[np.uint8]

_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8
)  # the codebook of IQ4_NL and IQ4_XS
FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.int8)
"""Twice the values of E2M1 (OCP Microscaling Formats, 2023): whole numbers."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What blocks are made of: a number is ``code * scale``, or ``code * scale - minimum``, of its group.

    Attributes:
        codes: int8 [rows, columns].
        scales: float16 or float32 [rows, columns / group]; int8 with ``factors``.
        group: consecutive columns that share a scale.
        minima: the same as ``scales``, or None where there are none.
        factors: see ``Tensor``.
    """

    codes: NDArray[np.int8]
    scales: NDArray[Any]
    group: int
    minima: NDArray[Any] | None = None
    factors: Factors | None = None


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A type of tensor.

    ``split`` takes blocks [rows, blocks, block_bytes] apart; None for plain floats. ``bits`` are those that a
    number takes in memory, where int8 codes of few values have 5 or 6. Codes from ``-zero`` to ``15 - zero`` become
    int4, with None int8.
    """

    name: str
    block: int
    block_bytes: int
    split: Callable[[Bytes], Parts] | None = None
    bits: float = 32
    zero: int | None = None


def to_tensor(kind: GgmlType, data: Bytes, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor of exactly the numbers that blocks stand for.

    Matrices keep their codes and scales: as int4 where the codes fit, else as int8. Vectors become float32.

    Args:
        kind: a type of blocks.
        data: the blocks of all rows, one after the other.
        shape: [N, K], or [K].
    """
    if kind.split is None:
        raise ValueError(f"{kind.name} has no blocks")
    columns = shape[-1]
    blocks = data.reshape(-1, columns // kind.block, kind.block_bytes)
    parts = kind.split(blocks)
    codes, zeros = parts.codes, None
    rows = (codes.shape[0], columns)
    if kind.zero is None:
        tensor = Tensor(Format.INT8, rows, codes, parts.group, parts.scales, None, parts.minima, parts.factors)
    else:
        if parts.minima is None:
            zeros = np.broadcast_to(np.uint8(kind.zero), parts.scales.shape)
        nibbles = (codes + np.int8(kind.zero)).view(np.uint8)
        packed = nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)
        tensor = Tensor(Format.INT4, rows, packed, parts.group, parts.scales, zeros, parts.minima, parts.factors)
    return tensor if len(shape) == 2 else Tensor(Format.F32, shape, tensor.dequantize().reshape(shape))


def _half(blocks: Bytes, at: int) -> NDArray[np.float16]:
    """The float16 at a byte of each block, [rows, blocks]."""
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view("<f2")[:, :, 0]


def _joined(codes: NDArray[Any]) -> NDArray[Any]:
    """[rows, blocks, ...] to [rows, columns]."""
    return np.ascontiguousarray(codes).reshape(codes.shape[0], -1)


def _nibbles(blocks: Bytes) -> Bytes:
    """Low nibbles of all bytes, then the high ones: the order of 32 codes in 16 bytes."""
    return np.concatenate((blocks & 0x0F, blocks >> 4), axis=-1)


def _split_q4_0(blocks: Bytes) -> Parts:
    codes = _nibbles(blocks[:, :, 2:]).astype(np.int8) - np.int8(8)
    return Parts(_joined(codes), _half(blocks, 0), 32)


def _split_q4_1(blocks: Bytes) -> Parts:
    return Parts(_joined(_nibbles(blocks[:, :, 4:])).view(np.int8), _half(blocks, 0), 32, -_half(blocks, 2))


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """The 32 bits of the four bytes at ``at``, each as 0 or 16."""
    return np.unpackbits(blocks[:, :, at : at + 4], axis=-1, bitorder="little") << np.uint8(4)


def _split_q5_0(blocks: Bytes) -> Parts:
    codes = (_nibbles(blocks[:, :, 6:]) | _fifth_bits(blocks, 2)).astype(np.int8) - np.int8(16)
    return Parts(_joined(codes), _half(blocks, 0), 32)


def _split_q5_1(blocks: Bytes) -> Parts:
    codes = _nibbles(blocks[:, :, 8:]) | _fifth_bits(blocks, 4)
    return Parts(_joined(codes).view(np.int8), _half(blocks, 0), 32, -_half(blocks, 2))


def _split_q8_0(blocks: Bytes) -> Parts:
    return Parts(_joined(blocks[:, :, 2:].view(np.int8)), _half(blocks, 0), 32)


def _pairs_of_bits(codes: Bytes) -> Bytes:
    """Codes of 2 bits: for each 32 bytes all lowest pairs, then the next ones; 64 bytes to 256 codes."""
    quarters = codes.reshape(*codes.shape[:2], 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 1, 4, 1)
    return ((quarters >> shifts) & np.uint8(3)).reshape(*codes.shape[:2], 256)


def _split_q2_k(blocks: Bytes) -> Parts:
    scales, codes = blocks[:, :, :16], _pairs_of_bits(blocks[:, :, 16:80])
    factors = Factors(256, _half(blocks, 80), _half(blocks, 82))
    return Parts(
        _joined(codes).view(np.int8),
        _joined(scales & 0x0F).view(np.int8),
        16,
        _joined(scales >> 4).view(np.int8),
        factors,
    )


def _split_q3_k(blocks: Bytes) -> Parts:
    high = blocks[:, :, :32].reshape(*blocks.shape[:2], 1, 32)
    bits = np.arange(8, dtype=np.uint8).reshape(1, 1, 8, 1)
    high = ((high >> bits) & np.uint8(1)).reshape(*blocks.shape[:2], 256)
    codes = _pairs_of_bits(blocks[:, :, 32:96]).astype(np.int8) - ((high ^ 1) << 2).astype(np.int8)
    low, rest = blocks[:, :, 96:104], blocks[:, :, 104:108]
    low = np.concatenate((low & 0x0F, low >> 4), axis=-1)
    shifts = np.repeat(np.array([0, 2, 4, 6], dtype=np.uint8), 4)
    scales = (low | ((np.tile(rest, 4) >> shifts) & 3) << 4).astype(np.int8) - np.int8(32)
    return Parts(_joined(codes), _joined(scales), 16, None, Factors(256, _half(blocks, 108)))


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of 6 bits each, from 12 bytes."""
    first, second, third = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:12]
    scales = np.concatenate((first & 0x3F, (third & 0x0F) | (first >> 6 << 4)), axis=-1)
    minima = np.concatenate((second & 0x3F, (third >> 4) | (second >> 6 << 4)), axis=-1)
    return scales, minima


def _with_minima(blocks: Bytes, codes: Bytes) -> Parts:
    """The groups of Q4_K and Q5_K."""
    scales, minima = _six_bits(blocks[:, :, 4:16])
    factors = Factors(256, _half(blocks, 0), _half(blocks, 2))
    return Parts(
        _joined(codes).view(np.int8), _joined(scales).view(np.int8), 32, _joined(minima).view(np.int8), factors
    )


def _nibbles_of_32(codes: Bytes) -> Bytes:
    """Of each 32 bytes the low nibbles, then the high ones."""
    return _nibbles(codes.reshape(*codes.shape[:2], -1, 32))


def _split_q4_k(blocks: Bytes) -> Parts:
    return _with_minima(blocks, _nibbles_of_32(blocks[:, :, 16:144]))


def _split_q5_k(blocks: Bytes) -> Parts:
    bits = np.arange(8, dtype=np.uint8).reshape(1, 1, 8, 1)
    high = (blocks[:, :, None, 16:48] >> bits) & np.uint8(1)
    low = _nibbles_of_32(blocks[:, :, 48:176]).reshape(*blocks.shape[:2], 8, 32)
    return _with_minima(blocks, low | high << np.uint8(4))


def _split_q6_k(blocks: Bytes) -> Parts:
    low = blocks[:, :, :128].reshape(*blocks.shape[:2], 2, 64)
    low = np.concatenate((low & 0x0F, low >> 4), axis=-1).reshape(*blocks.shape[:2], 256)
    codes = (low | _pairs_of_bits(blocks[:, :, 128:192]) << 4).astype(np.int8) - np.int8(32)
    scales = blocks[:, :, 192:208].view(np.int8)
    return Parts(_joined(codes), _joined(scales), 16, None, Factors(256, _half(blocks, 208)))


def _split_iq4_nl(blocks: Bytes) -> Parts:
    return Parts(_joined(_IQ4_VALUES[_nibbles(blocks[:, :, 2:])]), _half(blocks, 0), 32)


def _split_iq4_xs(blocks: Bytes) -> Parts:
    high = np.ascontiguousarray(blocks[:, :, 2:4]).view("<u2")
    shifts = np.arange(0, 16, 2, dtype=np.uint16)
    low = blocks[:, :, 4:8]
    low = np.stack((low & 0x0F, low >> 4), axis=-1).reshape(*low.shape[:2], 8)
    scales = (low | ((high >> shifts) & 3).astype(np.uint8) << 4).astype(np.int8) - np.int8(32)
    codes = _IQ4_VALUES[_nibbles(blocks[:, :, 8:].reshape(*blocks.shape[:2], 8, 16))]
    return Parts(_joined(codes), _joined(scales), 32, None, Factors(256, _half(blocks, 0)))


def _split_mxfp4(blocks: Bytes) -> Parts:
    return Parts(_joined(FP4_VALUES[_nibbles(blocks[:, :, 1:])]), fp4_scales(blocks[:, :, 0]), 32)


def fp4_scales(exponents: Bytes) -> NDArray[np.float32]:
    """What ``FP4_VALUES`` are multiplied by: half of the powers of two that bytes stand for (E8M0, biased by 127)."""
    wide = exponents.astype(np.uint32)
    bits = np.where(wide < 2, np.uint32(0x00200000) << wide, (wide - 1) << 23)
    return bits.astype("<u4").view("<f4")


GGML_TYPES: dict[int, GgmlType] = {
    0: GgmlType("F32", 1, 4),
    1: GgmlType("F16", 1, 2),
    2: GgmlType("Q4_0", 32, 18, _split_q4_0, 4.5, 8),
    3: GgmlType("Q4_1", 32, 20, _split_q4_1, 5, 0),
    6: GgmlType("Q5_0", 32, 22, _split_q5_0, 5.5),
    7: GgmlType("Q5_1", 32, 24, _split_q5_1, 6),
    8: GgmlType("Q8_0", 32, 34, _split_q8_0, 8.5),
    10: GgmlType("Q2_K", 256, 84, _split_q2_k, 5.125, 0),
    11: GgmlType("Q3_K", 256, 110, _split_q3_k, 4.5625, 4),
    12: GgmlType("Q4_K", 256, 144, _split_q4_k, 4.625, 0),
    13: GgmlType("Q5_K", 256, 176, _split_q5_k, 5.625),
    14: GgmlType("Q6_K", 256, 210, _split_q6_k, 6.5625),
    20: GgmlType("IQ4_NL", 32, 18, _split_iq4_nl, 8.5),
    23: GgmlType("IQ4_XS", 256, 136, _split_iq4_xs, 8.3125),
    30: GgmlType("BF16", 1, 2),
    39: GgmlType("MXFP4", 32, 17, _split_mxfp4, 6),
}
"""The supported types, by the number that files use."""
