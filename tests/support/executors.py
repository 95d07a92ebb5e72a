"""The executors that tests run programs on, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from windlass.native.cpu import cpu_info
from windlass.native.executor import NativeExecutor
from windlass.program.executor import Executor
from windlass.program.program import Program
from windlass.program.reference import ReferenceExecutor
from windlass.quantization.tensor import Tensor

_NATIVE = "native-"
EXECUTORS = ("reference", *(_NATIVE + kernels for kernels in cpu_info().kernels))
"""The reference, and the native executor with every kernel table that runs here."""


def make_executor(
    name: str,
    program: Program,
    weights: Mapping[str, Tensor],
    *,
    num_pages: int,
    max_positions: int,
    max_tokens: int = 512,
    kv_dtype: Literal["f32", "f16", "bf16", "int16", "int8"] = "f32",
) -> Executor:
    """One of ``EXECUTORS``; the caller closes it."""
    if name.startswith(_NATIVE):
        return NativeExecutor(
            program,
            weights,
            num_pages=num_pages,
            max_tokens=max_tokens,
            max_positions=max_positions,
            num_threads=2,
            kv_dtype=kv_dtype,
            kernels=name.removeprefix(_NATIVE),
        )
    return ReferenceExecutor(
        program, weights, num_pages=num_pages, max_tokens=max_tokens, max_positions=max_positions, kv_dtype=kv_dtype
    )
