"""Tensor formats: what a weight looks like in memory, how it is quantized, packed and unpacked."""

from windlass.quantization.mlc_packing import mlc_pack, mlc_shapes, mlc_unpack
from windlass.quantization.schemes import SCHEMES, Scheme, cast, constant_zeros, get_scheme, quantize
from windlass.quantization.tensor import Factors, Format, Tensor, as_int8, bf16_to_f32, f32_to_bf16, take_rows

__all__ = [
    "SCHEMES",
    "Factors",
    "Format",
    "Scheme",
    "Tensor",
    "as_int8",
    "bf16_to_f32",
    "cast",
    "constant_zeros",
    "f32_to_bf16",
    "get_scheme",
    "mlc_pack",
    "mlc_shapes",
    "mlc_unpack",
    "quantize",
    "take_rows",
]
