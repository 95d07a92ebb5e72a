"""Random weights for a program whose weights are nowhere: benchmarks and tests of size."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from windlass.late_numpy import np
from windlass.quantization import Format, Scheme, Tensor, constant_zeros, f32_to_bf16
from windlass.weights.loader import WeightSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 1 << 16


def dummy_weights(specs: Sequence[WeightSpec], scheme: Scheme | None, *, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield random weights in the format ``load_weights`` would give them; bfloat16 when there is no scheme.

    Matrices are about uniform with variance 1 / K, so that activations keep their size from layer to layer; of the
    vectors, biases are zero and everything else, the norms, one. A weight depends on its name, its shape and the seed.
    """
    for spec in specs:
        dtype = Format.BF16 if scheme is None else scheme.model_dtype
        if len(spec.shape) == 1:
            yield spec.name, _constant(spec.shape, dtype, 0.0 if spec.name.endswith("bias") else 1.0)
            continue
        rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(spec.name.encode())]))
        rows, columns = spec.shape
        if scheme is not None and scheme.quantizes(spec.role):
            yield spec.name, _grouped(rng, rows, columns, scheme)
        else:
            # 255 equally spaced values, about -1 .. 1: variance 1/3.
            values = _narrow(np.maximum(np.arange(-128, 128), -127) / 127 * np.sqrt(3 / columns), dtype)
            yield spec.name, Tensor(dtype, spec.shape, _draw(rng, values, (rows, columns)))


def _grouped(rng: np.random.Generator, rows: int, columns: int, scheme: Scheme) -> Tensor:
    codes = 2 * scheme.max_int + 1
    scale = np.sqrt(12 / (codes**2 - 1) / columns)
    scales = np.full(
        (rows, scheme.groups(columns)), scale, np.float16 if scheme.model_dtype is Format.F16 else np.float32
    )
    if scheme.bits == 8:
        data = _draw(rng, np.maximum(np.arange(256).astype(np.int8), -scheme.max_int), (rows, columns))
        return Tensor(Format.INT8, (rows, columns), data, scheme.group_size, scales)
    # Nibbles beyond the largest code fold back, the unused code of four bits to the zero point.
    nibble = np.arange(16) % (codes + 1)
    nibble[nibble == codes] = scheme.max_int
    pairs = (nibble[np.newaxis, :] | nibble[:, np.newaxis] << 4).reshape(-1).astype(np.uint8)
    packed = _draw(rng, pairs, (rows, -(-columns // 2)))
    if columns % 2:
        packed[:, -1] &= 0x0F
    zeros = constant_zeros(scheme.max_int, scales.shape)
    return Tensor(Format.INT4, (rows, columns), packed, scheme.group_size, scales, zeros)


def _draw(rng: np.random.Generator, values: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return a matrix of independent draws from 256 equally likely values."""
    out = np.empty(shape[0] * shape[1], values.dtype)
    for start in range(0, out.size, _BLOCK):  # NumPy widens indices to eight bytes, so not all at once
        count = min(_BLOCK, out.size - start)
        choices = rng.integers(0, 1 << 64, -(-count // 8), np.uint64).view(np.uint8)[:count]
        np.take(values, choices, out=out[start : start + count], mode="clip")
    return out.reshape(shape)


def _constant(shape: tuple[int, ...], dtype: Format, value: float) -> Tensor:
    return Tensor(dtype, shape, _narrow(np.full(shape, value), dtype))


def _narrow(values: NDArray[np.float64], dtype: Format) -> NDArray[Any]:
    """Return a few values in a float format."""
    if dtype is Format.BF16:
        return f32_to_bf16(values.astype(np.float32))
    return values.astype(np.float16 if dtype is Format.F16 else np.float32)
