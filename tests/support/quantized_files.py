"""Quantized Hugging Face checkpoints written by tests, number by number, from the layouts that their tools publish.

Independent of the package's readers: bits are put into words one code at a time, and the numbers that the codes stand
for are made by the formula of the tool that the layout belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.tiny_models import TinyModel, write_hf_directory
from support.weight_files import write_safetensors
from windlass.quantization import f32_to_bf16

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Matrix:
    """The stored pieces of a matrix by the last part of their names, and the numbers [N, K] they stand for."""

    pieces: Mapping[str, NDArray[Any]]
    numbers: F32


def packed(codes: NDArray[Any], bits: int, places: tuple[int, ...] | None = None) -> NDArray[np.int32]:
    """Codes [n, m] in words [n, m * bits / 32]; code ``places[i]`` of each word's has the i-th lowest bits."""
    per_word = 32 // bits
    rows, columns = codes.shape
    words = np.zeros((rows, -(-columns // per_word)), np.uint64)
    for column in range(columns):
        place = column % per_word if places is None else places.index(column % per_word)
        words[:, column // per_word] |= codes[:, column].astype(np.uint64) << np.uint64(place * bits)
    return words.astype(np.uint32).view(np.int32)


def scales_of(
    rng: np.random.Generator, shape: tuple[int, ...], columns: int, bits: int, dtype: str
) -> tuple[NDArray[Any], F32]:
    """Scales as stored, and as floats: numbers of about the size of a usual weight's."""
    values = (rng.uniform(0.5, 1.5, shape) / (columns**0.5 * (1 << bits) / 3.5)).astype(np.float32)
    if dtype == "bf16":
        stored = f32_to_bf16(values)
        return stored, (stored.astype(np.uint32) << 16).view(np.float32)
    stored = values.astype({"f16": np.float16, "f32": np.float32}[dtype])
    return stored, stored.astype(np.float32)


def groups_of(columns: int, group: int, rng: np.random.Generator | None = None) -> NDArray[np.int32]:
    """The group of each column; with ``rng`` of columns in a random order."""
    groups = (np.arange(columns) // (columns if group == -1 else group)).astype(np.int32)
    return groups if rng is None else groups[rng.permutation(columns)]


def gptq(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    *,
    bits: int = 4,
    group: int = 32,
    sym: bool = True,
    layout: str = "gptq",
    order: NDArray[np.int32] | None = None,
    scales: str = "f16",
) -> Matrix:
    """AutoGPTQ's QuantLinear: scales[g_idx] * (weight - zeros[g_idx]); ``order`` is g_idx, None for none of its own."""
    g_idx = groups_of(columns, group) if order is None else order
    groups = int(g_idx.max()) + 1
    codes = rng.integers(0, 1 << bits, (columns, rows))
    zeros = np.full((groups, rows), 1 << (bits - 1)) if sym else rng.integers(0, 1 << bits, (groups, rows))
    if layout == "gptq" and not sym:
        zeros = np.maximum(zeros, 1)
    stored, floats = scales_of(rng, (groups, rows), columns, bits, scales)
    pieces = {
        "qweight": packed(codes.T, bits).T.copy(),
        "qzeros": packed(zeros - 1 if layout == "gptq" else zeros, bits),
        "scales": stored,
        "g_idx": g_idx,
    }
    numbers = floats[g_idx] * (codes - zeros[g_idx]).astype(np.float32)
    return Matrix(pieces, numbers.T.copy())


def awq(rng: np.random.Generator, rows: int, columns: int, *, group: int = 32) -> Matrix:
    """AutoAWQ's WQLinear_GEMM: (weight - zeros) * scales."""
    size = columns if group == -1 else group
    codes = rng.integers(0, 16, (columns, rows))
    zeros = rng.integers(0, 16, (columns // size, rows))
    stored, floats = scales_of(rng, zeros.shape, columns, 4, "f16")
    places = (0, 2, 4, 6, 1, 3, 5, 7)
    pieces = {"qweight": packed(codes, 4, places), "qzeros": packed(zeros, 4, places), "scales": stored}
    numbers = (codes - np.repeat(zeros, size, axis=0)).astype(np.float32) * np.repeat(floats, size, axis=0)
    return Matrix(pieces, numbers.T.copy())


def compressed(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    *,
    bits: int = 4,
    group: int | None = 32,
    sym: bool = True,
    layout: str = "pack-quantized",
    packed_zeros: bool = True,
    order: NDArray[np.int32] | None = None,
    scales: str = "bf16",
) -> Matrix:
    """compressed-tensors: (x_q - zero_point) * scale. Whole rows with group -1, one scale for all with None."""
    half = 1 << (bits - 1)
    g_idx = groups_of(columns, -1 if group is None else group) if order is None else order
    shape = (1, 1) if group is None else (rows, int(g_idx.max()) + 1)
    codes = rng.integers(-half, half, (rows, columns))
    zeros = np.zeros(shape, np.int64) if sym else rng.integers(-half, half, shape)
    stored, floats = scales_of(rng, shape, columns, bits, scales)
    pieces: dict[str, NDArray[Any]] = {"weight_scale": stored.reshape(-1) if group is None else stored}
    if layout == "pack-quantized":
        pieces["weight_packed"] = packed(codes + half, bits)
        pieces["weight_shape"] = np.array([rows, columns], np.int64)
    else:
        pieces["weight"] = codes.astype(np.int8)
    if not sym and layout == "pack-quantized" and packed_zeros:
        pieces["weight_zero_point"] = packed(zeros.T + half, bits).T.copy()
    elif not sym:
        pieces["weight_zero_point"] = zeros.astype(np.int8)
    if order is not None:
        pieces["weight_g_idx"] = order
    wide = np.broadcast_to(floats, (rows, shape[1])), np.broadcast_to(zeros, (rows, shape[1]))
    numbers = (codes - wide[1][:, g_idx]).astype(np.float32) * wide[0][:, g_idx]
    return Matrix(pieces, numbers)


def fp8_number(code: int) -> float:
    """A code of E4M3, by the definition (Micikevicius et al., 2022)."""
    sign, exponent, fraction = -1.0 if code >> 7 else 1.0, code >> 3 & 15, code & 7
    return sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


FP8_NUMBERS = np.array([fp8_number(code) for code in range(256)], np.float32)


def fp8(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    *,
    block: tuple[int, int] | None,
    scale: str = "weight_scale",
    scales: str = "f32",
) -> Matrix:
    """weight * scale; ``block`` are the rows and columns that share a scale, -1 for all columns; None for one scale."""
    codes = rng.integers(0, 256, (rows, columns), np.uint8)
    codes[codes & 0x7F == 0x7F] = 0x81
    per_row, per_column = (rows, columns) if block is None else (block[0], columns if block[1] == -1 else block[1])
    shape = (-(-rows // per_row), -(-columns // per_column))
    stored, floats = scales_of(rng, shape, columns, 8, scales)
    wide = np.repeat(np.repeat(floats, per_row, axis=0), per_column, axis=1)[:rows, :columns]
    return Matrix({"weight": codes, scale: stored.reshape(()) if block is None else stored}, FP8_NUMBERS[codes] * wide)


def write_checkpoint(
    directory: Path,
    model: TinyModel,
    quantization: Mapping[str, Any] | None,
    quantized: Callable[[str, int, int], Matrix | None],
    *,
    extra: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, F32]:
    """Write the model with the matrices of its layers in another form; returns the numbers of all of them.

    Args:
        directory: an existing one.
        model: whose other weights stay as they are.
        quantization: ``quantization_config``, or None for a checkpoint of the plain numbers.
        quantized: the form of a matrix, by its name without ``.weight``, or None to leave it.
        extra: other tensors.
    """
    write_hf_directory(model, directory)
    stored: dict[str, NDArray[Any]] = {}
    numbers: dict[str, F32] = {}
    for name, data in model.weights().items():
        stem = name.removesuffix(".weight")
        matrix = quantized(stem, *data.shape) if data.ndim == 2 and ".layers." in name else None
        if matrix is None:
            stored[name] = numbers[name] = data
        else:
            numbers[name] = matrix.numbers
            if quantization is None:
                stored[name] = matrix.numbers
            else:
                stored |= {f"{stem}.{piece}": array for piece, array in matrix.pieces.items()}
    write_safetensors(directory / "model.safetensors", {**stored, **(extra or {})})
    config = {**model.config, **({} if quantization is None else {"quantization_config": quantization})}
    (directory / "config.json").write_text(json.dumps(config))
    vocab = {f"<{number}>": number for number in range(model.config["vocab_size"])}
    tokenizer = {"version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"}}
    tokenizer["model"] = {"type": "BPE", "vocab": vocab, "merges": []}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return numbers


def mxfp4(rng: np.random.Generator, experts: int, rows: int, columns: int) -> Matrix:
    """gpt-oss's experts: ``blocks`` and ``scales``, and the numbers [experts, rows, columns], by E2M1 and E8M0."""
    codes = rng.integers(0, 16, (experts, rows, columns))
    exponents = rng.integers(117, 123, (experts, rows, columns // 32))
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    numbers = np.where(codes & 8, -1, 1) * magnitudes[codes & 7] * 2.0 ** (np.repeat(exponents, 32, -1) - 127)
    pairs = codes.reshape(experts, rows, -1, 16, 2)
    blocks = (pairs[..., 0] | pairs[..., 1] << 4).astype(np.uint8)
    return Matrix({"blocks": blocks, "scales": exponents.astype(np.uint8)}, numbers.astype(np.float32))
