"""The one in-memory form of a weight, whatever file it came from."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Format(enum.Enum):
    """How the numbers of a tensor are stored. The values are the names users see."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def grouped(self) -> bool:
        """True when the format has one scale per group of consecutive columns."""
        return self in (Format.INT8, Format.INT4)


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A weight: a vector [K] or a row-major matrix [N, K] (N outputs, K inputs), possibly grouped-quantized along K.

    Invariant: ``data``, ``scales`` and ``zeros`` have the shapes and dtypes below; arrays may be read-only views of a
    mapped file and need not be aligned for more than their item size. Nobody writes to them.

    ========  =======================================================  =========================
    format    data                                                     one weight is
    ========  =======================================================  =========================
    F32       float32, ``shape``                                       data
    F16       float16, ``shape``                                       data
    BF16      uint16 (the upper half of a float32), ``shape``          data << 16, as float32
    INT8      int8 [N, K]                                              data * scale
    INT4      uint8 [N, ceil(K/2)], even column in the low nibble      (nibble - zero) * scale
    ========  =======================================================  =========================

    The group of column k is ``k // group_size``; the last group may be short. ``scales`` is float32 or float16
    [N, ceil(K/group_size)]; ``zeros`` is uint8 of the same shape (INT4 only; a constant zero point is a broadcast
    view). A group with scale 0 is all zeros, whatever its codes.
    """

    format: Format
    shape: tuple[int, ...]
    data: NDArray[Any]
    group_size: int = 0
    scales: NDArray[Any] | None = None
    zeros: NDArray[np.uint8] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the stored numbers, scales included."""
        scales = 0 if self.scales is None else self.scales.nbytes
        return self.data.nbytes + scales

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weight as float32 of shape ``shape``."""
        if self.format is Format.F32:
            return np.asarray(self.data, dtype=np.float32)
        if self.format is Format.F16:
            return self.data.astype(np.float32)
        if self.format is Format.BF16:
            return bf16_to_f32(self.data)
        if self.scales is None:
            raise ValueError(f"a tensor of format {self.format.value} needs scales")
        columns = self.shape[1]
        scales = np.repeat(self.scales.astype(np.float32), self.group_size, axis=1)[:, :columns]
        if self.format is Format.INT8:
            return self.data.astype(np.float32) * scales
        if self.zeros is None:
            raise ValueError("an int4 tensor needs zeros")
        codes = np.stack((self.data & 0x0F, self.data >> 4), axis=-1).reshape(self.shape[0], -1)[:, :columns]
        zeros = np.repeat(self.zeros, self.group_size, axis=1)[:, :columns]
        return (codes.astype(np.float32) - zeros.astype(np.float32)) * scales


def as_int8(tensor: Tensor, group_size: int) -> Tensor:
    """Return the same numbers as INT8 with groups of ``group_size``, which divides the tensor's own.

    Raises:
        ValueError: the tensor is not grouped, or its groups are not made of such.
    """
    if tensor.scales is None or tensor.group_size % group_size:
        raise ValueError(f"{tensor.format.value} in groups of {tensor.group_size} has none of {group_size}")
    rows, columns = tensor.shape
    codes = tensor.data
    if tensor.zeros is not None:
        codes = np.stack((codes & 0x0F, codes >> 4), axis=-1).reshape(rows, -1)[:, :columns].astype(np.int8)
        codes = codes - np.repeat(tensor.zeros.astype(np.int8), tensor.group_size, axis=1)[:, :columns]
    scales = np.repeat(tensor.scales.astype(np.float32), tensor.group_size // group_size, axis=1)
    return Tensor(Format.INT8, tensor.shape, codes, group_size, scales[:, : -(-columns // group_size)])


def bf16_to_f32(data: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16 bit patterns to float32; exact."""
    return (data.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(data: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16 bit patterns, to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(data, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)
