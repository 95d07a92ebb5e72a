"""The packed form of a grouped tensor in MLC files: codes in uint32 words, and scales.

Code k of a row sits in word ``k // E`` at bit ``(k % E) * bits`` with E = 32 // bits; a row is padded with zero codes
to whole groups. For W = ``scheme.words(K)`` and G = ``scheme.groups(K)``, the NK layout is words [N, W] and scales
[N, G]; the KN layout is the transpose of both. Embeddings and experts are NK in every scheme.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from windlass.late_numpy import np
from windlass.quantization.schemes import Scheme, constant_zeros
from windlass.quantization.tensor import Format, Tensor, bf16_to_f32, f32_to_bf16

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_WORDS = 1 << 16


def mlc_layout(scheme: Scheme, role: str) -> Literal["NK", "KN"]:
    """Return the layout of a weight of this role: the scheme's, but NK for embeddings and experts."""
    return "NK" if role in ("embedding", "experts") else scheme.layout


def mlc_shapes(shape: tuple[int, ...], scheme: Scheme, *, role: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of the words and of the scales of a weight of shape [N, K]."""
    rows, columns = shape
    words, groups = scheme.words(columns), scheme.groups(columns)
    if mlc_layout(scheme, role) == "KN":
        return (words, rows), (groups, rows)
    return (rows, words), (rows, groups)


def mlc_pack(tensor: Tensor, scheme: Scheme, *, role: str = "linear") -> tuple[NDArray[np.uint32], NDArray[Any]]:
    """Pack a tensor that ``quantize`` made by this scheme.

    Returns:
        ``(q_weight, q_scale)``: uint32, and float16, float32 or uint16 (bfloat16 bits) as ``scheme.model_dtype`` says,
        with the shapes of ``mlc_shapes``; contiguous.

    Raises:
        ValueError: the tensor is not of this scheme.
    """
    expected = Format.INT8 if scheme.bits == 8 else Format.INT4
    zeros = tensor.zeros
    fits = tensor.format is expected and tensor.group_size == scheme.group_size
    if not fits or (zeros is not None and not (zeros == scheme.max_int).all()):
        raise ValueError(f"a {tensor.format.value} tensor of group size {tensor.group_size} is not {scheme.name}")
    if tensor.scales is None:
        raise ValueError(f"a {tensor.format.value} tensor needs scales")
    rows, columns = tensor.shape
    words = np.zeros((rows, scheme.words(columns)), np.uint32)
    step = max(1, _BLOCK_WORDS // max(1, words.shape[1]))
    for start in range(0, rows, step):
        _pack_rows(tensor.data[start : start + step], words[start : start + step], scheme.bits)
    scales: NDArray[Any] = tensor.scales
    if scheme.model_dtype is Format.BF16:
        scales = f32_to_bf16(scales)
    if mlc_layout(scheme, role) == "KN":
        return np.ascontiguousarray(words.T), np.ascontiguousarray(scales.T)
    return words, np.ascontiguousarray(scales)


def mlc_unpack(
    q_weight: NDArray[np.uint32], q_scale: NDArray[Any], shape: tuple[int, int], scheme: Scheme, *, role: str = "linear"
) -> Tensor:
    """Turn words and scales into a tensor of shape [N, K], exactly.

    Four-bit NK words with K a multiple of the group size are taken as they are: the tensor's data is a view of
    ``q_weight``. Everything else is converted.

    Raises:
        ValueError: the arrays do not have the shapes of ``mlc_shapes``.
    """
    rows, columns = shape
    if (q_weight.shape, q_scale.shape) != mlc_shapes(shape, scheme, role=role):
        raise ValueError(f"words {list(q_weight.shape)} and scales {list(q_scale.shape)} do not fit {list(shape)}")
    if mlc_layout(scheme, role) == "KN":
        q_weight, q_scale = q_weight.T, q_scale.T
    scales = np.ascontiguousarray(bf16_to_f32(q_scale) if q_scale.dtype == np.uint16 else q_scale)
    words = np.ascontiguousarray(q_weight, dtype="<u4")
    if scheme.bits == 8:
        codes = words.view(np.uint8)[:, :columns]
        data = (codes - np.uint8(scheme.max_int)).view(np.int8)  # wraps to the int8 bit pattern
        return Tensor(Format.INT8, shape, data, scheme.group_size, scales)
    nibbles = words.view(np.uint8) if scheme.bits == 4 else _nibbles_of_three_bits(words)
    data = np.ascontiguousarray(nibbles[:, : -(-columns // 2)])
    return Tensor(
        Format.INT4, shape, data, scheme.group_size, scales, constant_zeros(scheme.max_int, (rows, scales.shape[1]))
    )


def _pack_rows(data: NDArray[Any], words: NDArray[np.uint32], bits: int) -> None:
    """Write the codes of some rows of a tensor's data into zeroed words."""
    if bits == 3:
        # A word takes ten codes: five bytes of nibble pairs, whose six useful bits close up.
        padded = np.zeros((words.shape[0], words.shape[1] * 5), np.uint8)
        padded[:, : data.shape[1]] = data
        pairs = padded.reshape(*words.shape, 5)
        six = (pairs & 0x07) | ((pairs >> 1) & 0x38)
        for index in range(5):
            words |= six[..., index].astype(np.uint32) << np.uint32(6 * index)
        return
    target = words.view(np.uint8)[:, : data.shape[1]]
    if bits == 4:
        target[:] = data
    else:
        np.add(data.view(np.uint8), np.uint8(127), out=target)  # wraps back from the int8 bit pattern


def _nibbles_of_three_bits(words: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return the ten codes of each word as nibble pairs: [N, W] to [N, 5 W] bytes."""
    rows, width = words.shape
    out = np.empty((rows, width, 5), np.uint8)
    step = max(1, _BLOCK_WORDS // max(1, width))
    for start in range(0, rows, step):
        for index in range(5):
            six = words[start : start + step] >> np.uint32(6 * index)
            out[start : start + step, :, index] = (six & 0x07) | ((six << np.uint32(1)) & 0x70)
    return out.reshape(rows, 5 * width)
