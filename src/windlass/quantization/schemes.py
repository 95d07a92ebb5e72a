"""The quantization schemes by name, and quantizing a weight by one of them.

The names, layouts and the formula are those of MLC LLM's group quantization; ``q8f16_1`` is the same with eight bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from windlass.late_numpy import np
from windlass.quantization.tensor import Format, Tensor, bf16_to_f32, f32_to_bf16

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_ELEMENTS = 1 << 18
"""Numbers worked on at once: a block and its temporaries stay in a core's second-level cache."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of a model are stored.

    A grouped scheme (``bits`` > 0) stores a matrix as codes of ``bits`` bits with one scale per ``group_size``
    consecutive columns of a row; a weight is ``(code - max_int) * scale``. Everything that is not quantized, and the
    scales, have the dtype ``model_dtype``. ``layout`` matters on disk only, see ``mlc_pack``.
    """

    name: str
    bits: int
    group_size: int
    model_dtype: Format
    layout: Literal["NK", "KN"] = "NK"
    quantize_embedding: bool = True
    quantize_head: bool = True

    @property
    def grouped(self) -> bool:
        """True when matrices are quantized, false when they only have a dtype."""
        return self.bits > 0

    @property
    def max_int(self) -> int:
        """The zero point, and the largest code's distance from it. Codes are 0 .. 2 * max_int."""
        return (1 << (self.bits - 1)) - 1

    @property
    def codes_per_word(self) -> int:
        """Codes in one uint32 of an MLC file."""
        return 32 // self.bits

    def groups(self, columns: int) -> int:
        """Return the number of groups in a row of ``columns`` weights; the last may be short."""
        return -(-columns // self.group_size)

    def words(self, columns: int) -> int:
        """Return the number of uint32 that hold a row's codes in an MLC file, padding included."""
        return self.groups(columns) * (self.group_size // self.codes_per_word)

    def quantizes(self, role: str) -> bool:
        """Return whether a weight of this role (see ``WeightSpec.role``) is quantized."""
        if role == "embedding":
            return self.grouped and self.quantize_embedding
        if role == "head":
            return self.grouped and self.quantize_head
        return self.grouped and role in ("linear", "experts")


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("q0f16", 0, 0, Format.F16),
        Scheme("q0bf16", 0, 0, Format.BF16),
        Scheme("q0f32", 0, 0, Format.F32),
        Scheme("q3f16_0", 3, 40, Format.F16, "KN"),
        Scheme("q3f16_1", 3, 40, Format.F16),
        Scheme("q4f16_0", 4, 32, Format.F16, "KN"),
        Scheme("q4bf16_0", 4, 32, Format.BF16, "KN"),
        Scheme("q4f16_1", 4, 32, Format.F16),
        Scheme("q4bf16_1", 4, 32, Format.BF16),
        Scheme("q4f32_1", 4, 32, Format.F32),
        Scheme("q4f16_2", 4, 32, Format.F16, quantize_embedding=False, quantize_head=False),
        Scheme("q8f16_1", 8, 32, Format.F16),
    )
}
"""Every supported scheme by name."""


def get_scheme(name: str) -> Scheme:
    """Return the scheme of this name.

    Raises:
        ValueError: there is none; the message lists the supported names.
    """
    scheme = SCHEMES.get(name)
    if scheme is None:
        raise ValueError(f"quantization {name!r} is not supported; supported: {', '.join(SCHEMES)}")
    return scheme


def quantize(weight: Tensor | NDArray[np.float32], scheme: Scheme) -> Tensor:
    """Quantize a matrix of shape [N, K], or, if the scheme is not grouped, give it the scheme's dtype.

    For each group of ``group_size`` columns of a row, with w the stored weights widened to float32:
    ``scale = max|w| / max_int``, rounded to ``model_dtype``; then with that rounded scale, in float32,
    ``code = clamp(round(w / scale + max_int), 0, 2 * max_int)``, ties to the even code. A group whose scale is 0 gets
    the code ``max_int`` throughout. (MLC LLM's converter does this arithmetic in ``model_dtype``; in float16 that moves
    a code by one where ``w / scale`` lies within 2^-8 of a tie. The formula is the same.)

    Three- and four-bit codes come back as ``Format.INT4`` with zeros 3 and 7, eight-bit ones as ``Format.INT8``.
    Scales are float16 for float16 schemes, else float32 (holding bfloat16 values for bfloat16 schemes).

    Raises:
        ValueError: the weight is not a matrix, is grouped already, or holds a number that is not finite or does not
            fit the scheme's dtype.
    """
    if not isinstance(weight, Tensor):
        weight = Tensor(Format.F32, weight.shape, weight)
    if not scheme.grouped:
        return cast(weight, scheme.model_dtype)
    if len(weight.shape) != 2 or weight.format.grouped:
        raise ValueError(
            f"only a float matrix can be quantized, not a {weight.format.value} tensor of shape {list(weight.shape)}"
        )
    rows, columns = weight.shape
    groups = scheme.groups(columns)
    scales = np.empty((rows, groups), np.float16 if scheme.model_dtype is Format.F16 else np.float32)
    int8 = scheme.bits == 8
    data = np.empty((rows, columns if int8 else -(-columns // 2)), np.uint8)
    for start, block in _float_blocks(weight):
        stop = start + block.shape[0]
        block = _pad_columns(block, groups * scheme.group_size).reshape(-1, scheme.group_size)
        scale = _group_scales(block, scheme)
        scales[start:stop] = scale.reshape(-1, groups)
        codes = _codes(block, scale, scheme).reshape(stop - start, -1)
        if int8:
            data[start:stop] = codes[:, :columns] - np.uint8(scheme.max_int)  # wraps to the int8 bit pattern
        else:
            data[start:stop] = _pack_nibbles(codes)[:, : data.shape[1]]
    if int8:
        return Tensor(Format.INT8, weight.shape, data.view(np.int8), scheme.group_size, scales)
    if columns % 2:
        data[:, -1] &= 0x0F
    return Tensor(
        Format.INT4, weight.shape, data, scheme.group_size, scales, constant_zeros(scheme.max_int, scales.shape)
    )


def cast(weight: Tensor, target: Format) -> Tensor:
    """Return a float tensor of any shape in another float format, rounded to nearest even; itself if it has it already.

    Raises:
        ValueError: the tensor or the target is grouped, or a number is not finite or does not fit the target.
    """
    if weight.format.grouped or target.grouped:
        raise ValueError(f"a weight cannot be cast from {weight.format.value} to {target.value}")
    if weight.format is target:
        return weight
    out = np.empty(weight.shape, {Format.F32: np.float32, Format.F16: np.float16, Format.BF16: np.uint16}[target])
    for start, block in _float_blocks(weight):
        if target is Format.BF16:
            narrow: NDArray[Any] = f32_to_bf16(block)
            finite = (narrow & 0x7F80) != 0x7F80
        else:
            with np.errstate(over="ignore"):
                narrow = block.astype(out.dtype, copy=False)
            finite = np.isfinite(narrow)
        if not finite.all():
            raise ValueError(f"a number is not finite or too large for {target.value}")
        out[start : start + block.shape[0]] = narrow
    return Tensor(target, weight.shape, out)


def constant_zeros(zero: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the zero points of a symmetric tensor: a read-only view that takes one byte."""
    return np.broadcast_to(np.uint8(zero), shape)


def _float_blocks(weight: Tensor) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (first row, rows as float32) for consecutive rows; the blocks of a float32 weight are views."""
    row_elements = max(1, weight.data[:1].size)
    step = max(1, _BLOCK_ELEMENTS // row_elements)
    for start in range(0, weight.shape[0], step):
        block = weight.data[start : start + step]
        if weight.format is Format.BF16:
            yield start, bf16_to_f32(block)
        else:
            yield start, block.astype(np.float32, copy=False)


def _pad_columns(block: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """Return the block with zero columns added up to ``columns``, contiguous; zeros change no group's maximum."""
    if block.shape[1] == columns:
        return np.ascontiguousarray(block)
    return np.pad(block, ((0, 0), (0, columns - block.shape[1])))


def _group_scales(block: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float32]:
    """Return the scale of each row of a block [groups, group_size], float32, rounded to what is stored."""
    # The bit patterns of floats without their signs are ordered as their magnitudes are, and NumPy reduces short rows
    # of integers twice as fast as short rows of floats. NaN sorts above infinity, so neither can hide.
    largest = (block.view(np.uint32) & np.uint32(0x7FFFFFFF)).max(axis=1).view(np.float32)
    if not np.isfinite(largest).all():
        raise ValueError("a number is not finite")
    scale: NDArray[np.float32] = largest / np.float32(scheme.max_int)
    if scheme.model_dtype is Format.BF16:
        return bf16_to_f32(f32_to_bf16(scale))
    if scheme.model_dtype is Format.F16:
        with np.errstate(over="ignore"):
            scale = scale.astype(np.float16).astype(np.float32)
        if not np.isfinite(scale).all():
            raise ValueError(f"a number is too large for the float16 scales of {scheme.name}")
    return scale


def _codes(block: NDArray[np.float32], scale: NDArray[np.float32], scheme: Scheme) -> NDArray[np.uint8]:
    """Return the codes of a block [groups, group_size] under its scales [groups]."""
    quotient = block / np.where(scale == 0, np.float32(1), scale)[:, np.newaxis]
    quotient += np.float32(scheme.max_int)
    np.rint(quotient, out=quotient)
    np.clip(quotient, 0, 2 * scheme.max_int, out=quotient)
    codes: NDArray[np.uint8] = quotient.astype(np.uint8)
    return codes


def _pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack codes below 16, [N, even K], two to a byte, even columns in the low nibbles."""
    pairs: NDArray[np.uint16] = codes.view("<u2")
    packed: NDArray[np.uint8] = (pairs | (pairs >> 4)).astype(np.uint8)
    return packed
