"""Grouped quantization on all cores: what ``windlass.quantization.quantize`` does, bit for bit."""

from __future__ import annotations

from windlass import quantization
from windlass.late_numpy import np
from windlass.native import _core
from windlass.quantization import Format, Scheme, Tensor, constant_zeros


def quantize(weight: Tensor, scheme: Scheme, *, num_threads: int | None = None) -> Tensor:
    """Quantize a float matrix of shape [N, K]; the result is that of ``windlass.quantization.quantize``.

    Args:
        weight: its data is contiguous.
        scheme: a grouped one, or else the weight gets its dtype.
        num_threads: by default one per physical core that this process may use.

    Raises:
        ValueError: as ``windlass.quantization.quantize``.
        MemoryError: there is not enough memory.
    """
    if not scheme.grouped or len(weight.shape) != 2 or weight.format.grouped or weight.data.size == 0:
        return quantization.quantize(weight, scheme)
    rows, columns = weight.shape
    int8 = scheme.bits == 8
    codes = np.empty((rows, columns if int8 else -(-columns // 2)), np.uint8)
    scales = np.empty((rows, scheme.groups(columns)), np.float16 if scheme.model_dtype is Format.F16 else np.float32)
    good = _core.quantize(
        weight.format.value,
        weight.data,
        codes,
        scales,
        bits=scheme.bits,
        group=scheme.group_size,
        rounding=scheme.model_dtype.value,
        num_threads=num_threads or _core.default_thread_count(),
    )
    if not good:
        return quantization.quantize(weight, scheme)  # which says what is wrong
    if int8:
        return Tensor(Format.INT8, weight.shape, codes.view(np.int8), scheme.group_size, scales)
    zeros = constant_zeros(scheme.max_int, scales.shape)
    return Tensor(Format.INT4, weight.shape, codes, scheme.group_size, scales, zeros)
