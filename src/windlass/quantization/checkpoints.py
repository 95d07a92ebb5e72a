"""How quantized Hugging Face checkpoints store a matrix, and the tensor of exactly its numbers.

The layouts are those of AutoGPTQ and GPTQModel (``QuantLinear``), of AutoAWQ (``WQLinear_GEMM``), of compressed-tensors
(``PackedQuantizationCompressor``, ``NaiveQuantizationCompressor``), of the FP8 checkpoints of DeepSeek-V3 and of the
MXFP4 ones of gpt-oss. Whatever they are, a matrix [N, K] has N outputs and K inputs here, and codes of integers are
unsigned: the zero point of symmetric ones is in the middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from windlass.quantization.ggml import FP4_VALUES, fp4_scales
from windlass.quantization.schemes import constant_zeros
from windlass.quantization.tensor import FP8_GROUP, Format, Tensor

Pieces: TypeAlias = Mapping[str, NDArray[Any]]
"""The stored arrays of a matrix by the last part of their names. Scales are float16 or float32."""

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where the nibble of each of eight rows is in a word of AWQ, from the lowest on."""

FP4_BLOCK = 32
"""Numbers of FP4 that share a scale."""

_BLOCK_ELEMENTS = 1 << 22
_RECORD_COLUMNS = 128
"""The native executor repeats the scale of a longer group so often."""


class Packing(Protocol):
    """How one matrix is stored. Its ``repr`` says all of it."""

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K]."""
        ...

    @property
    def bits(self) -> float:
        """Bits that a number takes in the native executor, about."""
        ...

    def tensor(self, pieces: Pieces) -> Tensor:
        """Return the tensor of exactly the numbers that the pieces, whose shapes and dtypes fit, stand for.

        Raises:
            ValueError: a piece has an impossible number.
        """
        ...


@dataclass(frozen=True, slots=True)
class GptqPacking:
    """``qweight``, ``qzeros``, ``scales`` and perhaps ``g_idx`` of GPTQ.

    Codes of ``code_bits`` bits (4 or 8) stand along K in the words of ``qweight`` [K * code_bits / 32, N], the lowest
    bits first; zero points along N in those of ``qzeros`` [groups, N * code_bits / 32]; ``scales`` is [groups, N].
    Column k belongs to group ``g_idx[k]``, without ``g_idx`` to ``k // group_size``. With ``less_one`` the zero points
    were stored less one, by one subtraction from each whole word, which is undone in the same way.
    """

    shape: tuple[int, int]
    code_bits: int
    group_size: int
    less_one: bool

    @property
    def bits(self) -> float:
        """Bits of a number."""
        return _bits(self.code_bits, self.group_size)

    def tensor(self, pieces: Pieces) -> Tensor:
        """See ``Packing``. ValueError: ``g_idx`` does not make groups of ``group_size``."""
        words = pieces["qzeros"].view(np.uint32)
        if self.less_one:
            words = words + np.uint32(0x11111111 if self.code_bits == 4 else 0x01010101)
        codes = np.ascontiguousarray(pieces["qweight"].T).view(np.uint8)
        order = _order(pieces.get("g_idx"), self.shape[1], self.group_size)
        zeros = _unpacked(words, self.code_bits).T
        return _integers(codes, self.shape, self.code_bits, self.group_size, pieces["scales"].T, zeros, order)


@dataclass(frozen=True, slots=True)
class AwqPacking:
    """``qweight`` [K, N / 8], ``qzeros`` [groups, N / 8] and ``scales`` [groups, N] of AWQ's "gemm".

    Codes of 4 bits stand along N, those of eight rows in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on.
    """

    shape: tuple[int, int]
    group_size: int

    @property
    def bits(self) -> float:
        """Bits of a number."""
        return _bits(4, self.group_size)

    def tensor(self, pieces: Pieces) -> Tensor:
        """See ``Packing``."""
        rows, columns = self.shape
        words = pieces["qweight"]
        codes = np.empty((rows, columns // 2), np.uint8)
        step = max(1, _BLOCK_ELEMENTS // columns // 8)
        for start in range(0, words.shape[1], step):
            block = _rows_of_awq(words[:, start : start + step])
            codes[start * 8 : (start + step) * 8] = (block[0::2] | block[1::2] << np.uint8(4)).T
        zeros = _rows_of_awq(pieces["qzeros"]).T
        return _integers(codes, self.shape, 4, self.group_size, pieces["scales"].T, zeros, None)


@dataclass(frozen=True, slots=True)
class WordPacking:
    """compressed-tensors' "pack-quantized": ``weight_packed``, ``weight_scale`` and perhaps more.

    Codes stand along K in the words of ``weight_packed`` [N, ceil(K * code_bits / 32)], the lowest bits first.
    ``weight_zero_point`` is the same along N, [ceil(N * code_bits / 32), groups], or signed bytes [N, groups];
    ``weight_scale`` is [N, groups] or one number; ``weight_g_idx``, if none is negative, are the groups of the columns.
    """

    shape: tuple[int, int]
    code_bits: int
    group_size: int

    @property
    def bits(self) -> float:
        """Bits of a number."""
        return _bits(self.code_bits, self.group_size)

    def tensor(self, pieces: Pieces) -> Tensor:
        """See ``Packing``. ValueError: ``weight_g_idx`` does not make groups of ``group_size``."""
        rows, columns = self.shape
        codes = pieces["weight_packed"].view(np.uint8)[:, : -(-columns * self.code_bits // 8)]
        zeros = pieces.get("weight_zero_point")
        if zeros is not None and zeros.dtype == np.int8:
            zeros = zeros.astype(np.int16) + np.int16(1 << (self.code_bits - 1))
        elif zeros is not None:
            zeros = _unpacked(np.ascontiguousarray(zeros.T).view(np.uint32), self.code_bits).T[:rows]
        groups = pieces.get("weight_g_idx")
        order = None if groups is None or groups.min() < 0 else _order(groups, columns, self.group_size)
        return _integers(codes, self.shape, self.code_bits, self.group_size, pieces["weight_scale"], zeros, order)


@dataclass(frozen=True, slots=True)
class BytePacking:
    """compressed-tensors' "int-quantized" and "naive-quantized": ``weight`` as signed bytes [N, K].

    ``weight_scale``, and where there is one ``weight_zero_point`` of signed bytes, are [N, groups] or one number.
    """

    shape: tuple[int, int]
    group_size: int

    @property
    def bits(self) -> float:
        """Bits of a number."""
        return _bits(8, self.group_size)

    def tensor(self, pieces: Pieces) -> Tensor:
        """See ``Packing``."""
        zeros = pieces.get("weight_zero_point")
        if zeros is not None:
            zeros = zeros.astype(np.int16) + np.int16(128)
        codes = pieces["weight"].view(np.uint8) ^ np.uint8(0x80)
        return _integers(codes, self.shape, 8, self.group_size, pieces["weight_scale"], zeros, None)


@dataclass(frozen=True, slots=True)
class Fp8Packing:
    """``weight`` as e4m3 [N, K], and ``scale``, the name of what blocks of rows and columns are multiplied by.

    The scales are [ceil(N / block_rows), ceil(K / group_size)], or one number.
    """

    shape: tuple[int, int]
    block_rows: int
    group_size: int
    scale: str

    @property
    def bits(self) -> float:
        """Bits of a number."""
        return 8 + 32 / self.group_size

    def tensor(self, pieces: Pieces) -> Tensor:
        """See ``Packing``. ValueError: a number is a NaN."""
        rows = self.shape[0]
        codes = pieces["weight"]
        if (codes & np.uint8(0x7F)).max() == 0x7F:
            raise ValueError("a number is not finite")
        scales = pieces[self.scale].astype(np.float32)
        if scales.ndim == 2:
            scales = scales[np.arange(rows) // self.block_rows]
        return Tensor(Format.FP8, self.shape, codes, self.group_size, _spread(scales, self.shape, self.group_size))


@dataclass(frozen=True, slots=True)
class Mxfp4Packing:
    """Experts as gpt-oss stores them: ``blocks`` [E, N, K / 32, 16] of 32 codes of FP4, and ``scales`` [E, N, K / 32].

    The even ones of a block's columns are in the low halves of its bytes; a scale is an exponent (E8M0). The rows of
    all experts make one matrix. (OCP Microscaling Formats, 2023.)
    """

    shape: tuple[int, int]

    @property
    def bits(self) -> float:
        """Bits of a number."""
        return 9.0

    def tensor(self, pieces: Pieces) -> Tensor:
        """See ``Packing``. ValueError: a scale is a NaN."""
        rows, columns = self.shape
        exponents = pieces["scales"].reshape(rows, -1)
        if (exponents == 0xFF).any():
            raise ValueError("a number is not finite")
        packed = pieces["blocks"].reshape(rows, -1)
        codes = np.empty((rows, columns), np.int8)
        codes[:, 0::2] = FP4_VALUES[packed & 0x0F]
        codes[:, 1::2] = FP4_VALUES[packed >> 4]
        return Tensor(Format.INT8, self.shape, codes, FP4_BLOCK, fp4_scales(exponents))


def fp8_group(columns: int, group_size: int) -> bool:
    """Return whether a row of ``columns`` numbers of e4m3 may have groups of ``group_size``."""
    return group_size >= columns or group_size % FP8_GROUP == 0


def _bits(code_bits: int, group_size: int) -> float:
    return code_bits + 32 / min(group_size, _RECORD_COLUMNS)


def _unpacked(words: NDArray[Any], code_bits: int) -> NDArray[np.uint8]:
    """[n, words] to [n, codes], the lowest bits first."""
    packed = words.view(np.uint8)
    if code_bits == 8:
        return packed
    return np.stack((packed & 0x0F, packed >> 4), axis=-1).reshape(packed.shape[0], -1)


def _rows_of_awq(words: NDArray[Any]) -> NDArray[np.uint8]:
    """[n, words] to [n, rows]."""
    nibbles = _unpacked(np.ascontiguousarray(words), 4)
    return nibbles.reshape(nibbles.shape[0], -1, 8)[:, :, _AWQ_PLACES].reshape(nibbles.shape)


def _order(groups: NDArray[Any] | None, columns: int, group_size: int) -> NDArray[np.int32] | None:
    """The columns group by group, or None where they stand so already."""
    wanted = np.arange(columns) // group_size
    if groups is None or np.array_equal(groups, wanted):
        return None
    order = np.argsort(groups, kind="stable")
    if not np.array_equal(groups[order], wanted):
        raise ValueError(f"the groups of its columns are not 0, 1, ... with {group_size} columns each")
    return order.astype(np.int32)


def _ordered(codes: NDArray[np.uint8], code_bits: int, order: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The codes with their columns in another order."""
    if code_bits == 8:
        return codes[:, order]
    result = np.empty_like(codes)
    step = max(1, _BLOCK_ELEMENTS // order.size)
    for start in range(0, codes.shape[0], step):
        nibbles = _unpacked(codes[start : start + step], 4)[:, order]
        if order.size % 2:
            nibbles = np.pad(nibbles, ((0, 0), (0, 1)))
        result[start : start + step] = nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)
    return result


def _spread(numbers: NDArray[Any], shape: tuple[int, int], group_size: int) -> NDArray[Any]:
    """One number, one for each row or all of them, as [N, groups]."""
    rows, columns = shape
    return np.broadcast_to(numbers.reshape(-1, 1) if numbers.ndim < 2 else numbers, (rows, -(-columns // group_size)))


def _integers(
    codes: NDArray[np.uint8],
    shape: tuple[int, int],
    code_bits: int,
    group_size: int,
    scales: NDArray[Any],
    zeros: NDArray[Any] | None,
    order: NDArray[np.int32] | None,
) -> Tensor:
    """The tensor of (code - zero) * scale.

    Args:
        codes: two to a byte, or a byte each, unsigned.
        shape: [N, K].
        code_bits: 4 or 8.
        group_size: columns that share a scale.
        scales: see ``_spread``.
        zeros: the same, or None for the code in the middle.
        order: see ``Tensor``.
    """
    middle = 1 << (code_bits - 1)
    scales = _spread(scales, shape, group_size)
    if order is not None:
        codes = _ordered(codes, code_bits, order)
    if zeros is not None:
        zeros = _spread(zeros, shape, group_size)
        if zeros.min() == zeros.max():
            zero = int(zeros.flat[0])
            zeros = None if zero == middle else np.broadcast_to(zeros.flat[0], zeros.shape)
    if code_bits == 4:
        zeros = constant_zeros(middle, scales.shape) if zeros is None else zeros.astype(np.uint8, copy=False)
        return Tensor(Format.INT4, shape, codes, group_size, scales, zeros, order=order)
    data = (codes ^ np.uint8(middle)).view(np.int8)
    if zeros is None:
        return Tensor(Format.INT8, shape, data, group_size, scales, order=order)
    scales = scales.astype(np.float32)
    offsets = zeros.astype(np.float32) - np.float32(middle)
    tensor = Tensor(Format.INT8, shape, data, group_size, scales, minima=offsets * scales, order=order)
    # A product of a code and a scale of up to 15 bits, which float16 and bfloat16 have not, is exact, and so is the
    # difference of two of them. Of others the float32 numbers themselves remain.
    if (scales.view(np.uint32) & np.uint32(0x1FF)).any():
        return _rounded_once(tensor, offsets)
    return tensor


def _rounded_once(tensor: Tensor, offsets: NDArray[np.float32]) -> Tensor:
    """(code - offset) * scale as float32, rounded only by the product."""
    repeats = tensor.group_size
    columns = tensor.shape[1]
    scales, _ = tensor.group_numbers()
    numbers = tensor.codes().astype(np.float32) - np.repeat(offsets, repeats, axis=1)[:, :columns]
    numbers *= np.repeat(scales, repeats, axis=1)[:, :columns]
    if tensor.order is not None:
        numbers[:, tensor.order] = numbers.copy()
    return Tensor(Format.F32, tensor.shape, numbers)
