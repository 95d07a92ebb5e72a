"""The one in-memory form of a weight, whatever file it came from."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from windlass.late_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Format(enum.Enum):
    """How the numbers of a tensor are stored. The values are the names users see."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"

    @property
    def grouped(self) -> bool:
        """True when the format has one scale per group of consecutive columns."""
        return self in (Format.INT8, Format.INT4, Format.FP8)


FP8_GROUP = 64
"""Groups of a tensor of FP8 are multiples of this, or whole rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """What scales and minima that are int8 are to be multiplied by: for each row, one per ``superblock`` columns.

    ``scales`` and ``minima`` are float16 [N, K/superblock]; there are minima where the tensor has them. The products
    are exact in float32.
    """

    superblock: int
    scales: NDArray[np.float16]
    minima: NDArray[np.float16] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A weight: a vector [K] or a row-major matrix [N, K] (N outputs, K inputs), possibly grouped-quantized along K.

    Invariant: ``data``, ``scales`` and the others have the shapes and dtypes below; arrays may be read-only views of a
    mapped file and need not be aligned for more than their item size. Nobody writes to them.

    ========  =======================================================  ==========================================
    format    data                                                     one weight is
    ========  =======================================================  ==========================================
    F32       float32, ``shape``                                       data
    F16       float16, ``shape``                                       data
    BF16      uint16 (the upper half of a float32), ``shape``          data << 16, as float32
    INT8      int8 [N, K]                                              data * scale, or data * scale - minimum
    INT4      uint8 [N, ceil(K/2)], even column in the low nibble      (nibble - zero) * scale, or
                                                                       nibble * scale - minimum
    FP8       uint8 [N, K], e4m3 (``_e4m3_values``)                    number * scale
    ========  =======================================================  ==========================================

    The group of column k is ``k // group_size``; the last group may be short. ``scales`` is float32 or float16
    [N, ceil(K/group_size)], or with ``factors`` int8, and so are ``minima``; ``zeros`` is uint8 of the same shape (INT4
    without minima; a constant zero point is a broadcast view). A group with scale 0 and no minimum is all zeros,
    whatever its codes. The scales of FP8 are float32.

    With an ``order``, int32 [K], the data, and so the groups, have the columns in another order: column i of the data
    is column ``order[i]`` of the weight. INT8 and INT4 only.
    """

    format: Format
    shape: tuple[int, ...]
    data: NDArray[Any]
    group_size: int = 0
    scales: NDArray[Any] | None = None
    zeros: NDArray[np.uint8] | None = None
    minima: NDArray[Any] | None = None
    factors: Factors | None = None
    order: NDArray[np.int32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the stored numbers, with scales, minima and their factors."""
        arrays = [self.data, self.scales, self.minima]
        if self.factors is not None:
            arrays += [self.factors.scales, self.factors.minima]
        return sum(array.nbytes for array in arrays if array is not None)

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weight as float32 of shape ``shape``."""
        if self.format is Format.F32:
            return np.asarray(self.data, dtype=np.float32)
        if self.format is Format.F16:
            return self.data.astype(np.float32)
        if self.format is Format.BF16:
            return bf16_to_f32(self.data)
        scales, minima = self.group_numbers()
        columns = self.shape[1]
        numbers = _e4m3_values()[self.data] if self.format is Format.FP8 else self.codes().astype(np.float32)
        numbers *= np.repeat(scales, self.group_size, axis=1)[:, :columns]
        if minima is not None:
            numbers -= np.repeat(minima, self.group_size, axis=1)[:, :columns]
        if self.order is not None:
            numbers[:, self.order] = numbers.copy()
        return numbers

    def codes(self) -> NDArray[np.int8]:
        """Return what the scales are multiplied by, without zero points, as int8 [N, K], columns as in the data.

        Raises:
            ValueError: the tensor has no codes.
        """
        if self.format is Format.INT8:
            codes: NDArray[np.int8] = self.data
            return codes
        if self.format is not Format.INT4:
            raise ValueError(f"a tensor of format {self.format.value} has no codes")
        rows, columns = self.shape
        nibbles = np.stack((self.data & 0x0F, self.data >> 4), axis=-1).reshape(rows, -1)[:, :columns].astype(np.int8)
        if self.zeros is None:
            return nibbles
        return nibbles - np.repeat(self.zeros.astype(np.int8), self.group_size, axis=1)[:, :columns]

    def group_numbers(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the scales and the minima, if there are any, as float32 [N, ceil(K/group_size)].

        Raises:
            ValueError: the tensor has none.
        """
        if self.scales is None:
            raise ValueError(f"a tensor of format {self.format.value} needs scales")
        scales, minima = self.scales.astype(np.float32), None if self.minima is None else self.minima.astype(np.float32)
        if self.factors is not None:
            repeat = self.factors.superblock // self.group_size
            scales *= np.repeat(self.factors.scales.astype(np.float32), repeat, axis=1)[:, : scales.shape[1]]
            if minima is not None and self.factors.minima is not None:
                minima *= np.repeat(self.factors.minima.astype(np.float32), repeat, axis=1)[:, : minima.shape[1]]
        return scales, minima


def take_rows(tensor: Tensor, rows: NDArray[np.integer]) -> Tensor:
    """Return the tensor whose row i is row ``rows[i]`` of ``tensor``.

    Raises:
        IndexError: there is no such row.
    """

    def taken(array: NDArray[Any] | None) -> Any:
        return None if array is None else array[rows]

    factors = tensor.factors
    if factors is not None:
        factors = Factors(factors.superblock, taken(factors.scales), taken(factors.minima))
    return Tensor(
        tensor.format,
        (len(rows), *tensor.shape[1:]),
        taken(tensor.data),
        tensor.group_size,
        taken(tensor.scales),
        taken(tensor.zeros),
        taken(tensor.minima),
        factors,
        tensor.order,
    )


def as_int8(tensor: Tensor, group_size: int) -> Tensor:
    """Return the same numbers as INT8 with float32 scales in groups of ``group_size``, which divides the tensor's own.

    Raises:
        ValueError: the tensor is not grouped, or its groups are not made of such.
    """
    if tensor.group_size == 0 or tensor.group_size % group_size:
        raise ValueError(f"{tensor.format.value} in groups of {tensor.group_size} has none of {group_size}")
    groups = -(-tensor.shape[1] // group_size)
    repeat = tensor.group_size // group_size
    scales, minima = tensor.group_numbers()
    return Tensor(
        Format.INT8,
        tensor.shape,
        tensor.codes(),
        group_size,
        np.repeat(scales, repeat, axis=1)[:, :groups],
        minima=None if minima is None else np.repeat(minima, repeat, axis=1)[:, :groups],
        order=tensor.order,
    )


@cache
def _e4m3_values() -> NDArray[np.float32]:
    """The numbers of 8 bits: 4 of exponent, 3 of fraction, no infinities (Micikevicius et al., 2022, "FP8 Formats for
    Deep Learning", E4M3)."""
    codes = np.arange(256)
    exponents, fractions = codes >> 3 & 15, codes & 7
    magnitudes = np.where(exponents == 0, fractions * 2.0**-9, (8 + fractions) * 2.0 ** (exponents - 10.0))
    values: NDArray[np.float32] = np.where(codes < 128, magnitudes, -magnitudes).astype(np.float32)
    values[[0x7F, 0xFF]] = np.nan
    return values


def bf16_to_f32(data: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16 bit patterns to float32; exact."""
    return (data.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(data: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16 bit patterns, to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(data, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)
