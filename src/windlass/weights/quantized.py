"""The tensors of a quantized Hugging Face checkpoint as matrices: several stored pieces become one ``x.weight``.

Which modules are quantized, and how, is told by the tensors that are there; the configuration says what they may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from windlass.errors import LoadError
from windlass.quantization.checkpoints import (
    FP4_BLOCK,
    AwqPacking,
    BytePacking,
    Fp8Packing,
    GptqPacking,
    Mxfp4Packing,
    Packing,
    WordPacking,
    fp8_group,
)
from windlass.weights.source import StoredTensor, StoredType, WeightSource

WHOLE = -1
"""A group size or a number of rows: all of the matrix."""

Storage: TypeAlias = Literal["gptq", "awq", "words", "bytes", "fp8", "mxfp4"]
Pieces: TypeAlias = Mapping[str, StoredTensor]
"""The stored tensors of a matrix by the last part of their names."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """One way in which a checkpoint stores quantized matrices.

    Attributes:
        storage: that of GPTQ, that of AWQ, in words or in bytes as compressed-tensors does, floats of 8 bits, or of 4.
        bits: of a code; 8 for floats.
        group_size: columns that share a scale; ``WHOLE`` rows.
        block_rows: rows that share scales; for a ``WHOLE`` matrix there is one scale.
        scale: the last part of the name of the scales.
        zeros: whether there must be zero points beside the scales. GPTQ and AWQ always have them; those of symmetric
            codes, which first versions of compressed-tensors stored, may be there.
        less_one: the zero points of GPTQ were stored less one.
    """

    storage: Storage
    bits: int
    group_size: int
    block_rows: int = 1
    scale: str = "scales"
    zeros: bool = True
    less_one: bool = False

    def group(self, columns: int) -> int:
        """Columns of a group in a row of so many."""
        return columns if self.group_size == WHOLE else min(self.group_size, columns)

    def groups(self, columns: int) -> int:
        """Groups of such a row."""
        return -(-columns // self.group(columns))

    def __str__(self) -> str:
        """What the configuration says, for errors."""
        rows = {1: "", WHOLE: " of all rows"}.get(self.block_rows, f" of {self.block_rows} rows")
        size = "whole rows" if self.group_size == WHOLE else f"groups of {self.group_size}"
        return f"{self.bits} bits in {size}{rows}"


_SCALE_TYPES: tuple[StoredType, ...] = ("float16", "bfloat16", "float32")
_MARKS: dict[Storage, tuple[str, StoredType]] = {
    "gptq": ("qweight", "int32"),
    "awq": ("qweight", "int32"),
    "words": ("weight_packed", "int32"),
    "bytes": ("weight", "int8"),
    "fp8": ("weight", "float8"),
    "mxfp4": ("blocks", "uint8"),
}
"""The piece that has the codes, and its type."""

_COMPANIONS: dict[Storage, tuple[str, ...]] = {
    "gptq": ("qzeros", "scales", "g_idx"),
    "awq": ("qzeros", "scales"),
    "words": ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    "bytes": ("weight_scale", "weight_zero_point"),
    "fp8": ("weight_scale", "weight_scale_inv"),
    "mxfp4": ("scales",),
}
_BETWEEN: dict[Storage, str] = {"mxfp4": "_"}
"""What is between the name of a matrix, which is then whole, and that of a piece; a point for all others."""

_OF_ACTIVATIONS = ("input_scale", "input_zero_point", "input_scale_ub", "activation_scale")
_OF_THE_CACHE = (".k_scale", ".v_scale")
"""What a checkpoint says of a rounding of activations, or of keys and values, that is not done: see docs/models.md."""


class _UnfitError(Exception):
    """The pieces do not fit a grouping."""


def quantized_tensors(path: Path, tensors: Sequence[StoredTensor], groupings: Sequence[Grouping]) -> list[StoredTensor]:
    """Return the tensors with the pieces of each matrix put together as ``x.weight``; others stay as they are.

    Args:
        path: of the checkpoint, for errors about what is missing.
        tensors: those of the files.
        groupings: what the configuration says that quantized matrices may be.

    Raises:
        LoadError: a piece is missing or left over, has an unfitting shape or type, or is of no grouping.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    shapes = _stored_shapes(path, tensors)
    matrices: dict[str, StoredTensor] = {}
    used: set[str] = set()
    for tensor in tensors:
        fitting = [grouping for grouping in groupings if _is_marked(tensor, grouping)]
        if not fitting:
            continue
        storage = fitting[0].storage
        between, last = _BETWEEN.get(storage, "."), _MARKS[storage][0]
        stem = tensor.name.removesuffix(between + last)
        names = (last, *_COMPANIONS[storage])
        pieces = {name: by_name[stem + between + name] for name in names if stem + between + name in by_name}
        packing = _packing(stem + between, pieces, fitting, shapes.get(f"{stem}.weight_shape"))
        matrix = stem if storage in _BETWEEN else f"{stem}.weight"
        matrices[matrix] = _matrix(matrix, pieces, packing)
        used.update(piece.name for piece in pieces.values())
        used.update(f"{stem}.{name}" for name in _OF_ACTIVATIONS)
    rest = [tensor for tensor in tensors if tensor.name not in used and not tensor.name.endswith(_OF_THE_CACHE)]
    for tensor in rest:
        if tensor.name in matrices:
            raise LoadError(tensor.file, f"tensor {tensor.name!r} is there twice, once quantized")
    return [*rest, *matrices.values()]


def _is_marked(tensor: StoredTensor, grouping: Grouping) -> bool:
    """Whether a tensor has the codes of a matrix. Of ``weight`` the type tells; other names leave no doubt."""
    mark, dtype = _MARKS[grouping.storage]
    ending = _BETWEEN.get(grouping.storage, ".") + mark
    return tensor.name.endswith(ending) and (mark != "weight" or tensor.dtype == dtype)


def _stored_shapes(path: Path, tensors: Iterable[StoredTensor]) -> dict[str, tuple[int, ...]]:
    """Read the tensors ``weight_shape``: two numbers each."""
    named = [tensor for tensor in tensors if tensor.name.endswith(".weight_shape")]
    for tensor in named:
        if tensor.dtype not in ("int64", "int32") or tensor.shape != (2,):
            raise LoadError(tensor.file, f"tensor {tensor.name!r} must be two integers")
    with WeightSource(path, named) as source:
        return {tensor.name: tuple(int(size) for size in source.read(tensor.name)) for tensor in named}


def _matrix(name: str, pieces: Pieces, packing: Packing) -> StoredTensor:
    first = next(iter(pieces.values()))
    return StoredTensor(
        name=name,
        file=first.file,
        offset=first.offset,
        nbytes=sum(piece.nbytes for piece in pieces.values()),
        shape=packing.shape,
        dtype="pieces",
        packing=packing,
        pieces={key: piece for key, piece in pieces.items() if key != "weight_shape"},
    )


def _packing(stem: str, pieces: Pieces, groupings: Sequence[Grouping], stored_shape: tuple[int, ...] | None) -> Packing:
    """How the pieces, whose names begin with ``stem``, are stored: by the first grouping that they fit."""
    reasons: dict[str, None] = {}
    for grouping in groupings:
        try:
            return _MAKERS[grouping.storage](pieces, grouping, stored_shape)
        except _UnfitError as unfit:
            reasons[str(unfit)] = None
        except KeyError as missing:
            reasons[f"tensor {f'{stem}{missing.args[0]}'!r} is missing"] = None
    raise LoadError(next(iter(pieces.values())).file, "; ".join(reasons))


def _check(
    piece: StoredTensor, types: Sequence[StoredType], shapes: Sequence[tuple[int, ...]], grouping: Grouping
) -> None:
    if piece.dtype not in types:
        raise _UnfitError(f"tensor {piece.name!r} has dtype {piece.dtype}, {' or '.join(types)} is needed")
    if piece.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise _UnfitError(f"tensor {piece.name!r} has shape {list(piece.shape)}; {grouping} need {wanted}")


def _codes_shape(pieces: Pieces, grouping: Grouping) -> tuple[int, int]:
    name, dtype = _MARKS[grouping.storage]
    piece = pieces[name]
    if piece.dtype != dtype or len(piece.shape) != 2 or 0 in piece.shape:
        raise _UnfitError(f"tensor {piece.name!r} must be a matrix of {dtype}, not {piece.dtype} {list(piece.shape)}")
    return piece.shape[0], piece.shape[1]


def _gptq(pieces: Pieces, grouping: Grouping, _: tuple[int, ...] | None) -> Packing:
    words, rows = _codes_shape(pieces, grouping)
    per_word = 32 // grouping.bits
    columns = words * per_word
    groups = grouping.groups(columns)
    if rows % per_word:
        raise _UnfitError(f"tensor {pieces['qweight'].name!r} has {rows} columns, not a multiple of {per_word}")
    _check(pieces["qzeros"], ("int32",), [(groups, rows // per_word)], grouping)
    _check(pieces["scales"], _SCALE_TYPES, [(groups, rows)], grouping)
    if "g_idx" in pieces:
        _check(pieces["g_idx"], ("int32",), [(columns,)], grouping)
    return GptqPacking((rows, columns), grouping.bits, grouping.group(columns), grouping.less_one)


def _awq(pieces: Pieces, grouping: Grouping, _: tuple[int, ...] | None) -> Packing:
    columns, words = _codes_shape(pieces, grouping)
    groups = grouping.groups(columns)
    if columns % grouping.group(columns) or columns % 2:
        raise _UnfitError(f"tensor {pieces['qweight'].name!r} has {columns} rows, which cannot be {grouping}")
    _check(pieces["qzeros"], ("int32",), [(groups, words)], grouping)
    _check(pieces["scales"], _SCALE_TYPES, [(groups, words * 8)], grouping)
    return AwqPacking((words * 8, columns), grouping.group(columns))


def _scale_shapes(grouping: Grouping, rows: int, columns: int) -> list[tuple[int, ...]]:
    """The shapes that scales of compressed-tensors may have."""
    if grouping.block_rows == WHOLE:
        return [(), (1,), (1, 1)]
    shape = (-(-rows // grouping.block_rows), grouping.groups(columns))
    return [shape, shape[:1]] if shape[1] == grouping.block_rows == 1 else [shape]


def _check_scales(pieces: Pieces, grouping: Grouping, rows: int, columns: int) -> None:
    _check(pieces[grouping.scale], _SCALE_TYPES, _scale_shapes(grouping, rows, columns), grouping)
    zeros = pieces.get("weight_zero_point")
    if zeros is None and not grouping.zeros:
        return
    zeros = pieces["weight_zero_point"]
    if zeros.dtype == "int32" and grouping.storage == "words" and grouping.zeros:
        packed = (-(-rows * grouping.bits // 32), grouping.groups(columns))
        _check(zeros, ("int32",), [packed], grouping)
    else:
        _check(zeros, ("int8",), _scale_shapes(grouping, rows, columns), grouping)


def _words(pieces: Pieces, grouping: Grouping, stored_shape: tuple[int, ...] | None) -> Packing:
    rows, words = _codes_shape(pieces, grouping)
    shape = pieces["weight_shape"]
    if stored_shape is None or stored_shape[0] != rows or -(-stored_shape[1] * grouping.bits // 32) != words:
        raise _UnfitError(f"tensor {shape.name!r} is {stored_shape}, which {words} words a row cannot be: {grouping}")
    columns = stored_shape[1]
    _check_scales(pieces, grouping, rows, columns)
    if "weight_g_idx" in pieces:
        _check(pieces["weight_g_idx"], ("int32",), [(columns,)], grouping)
    return WordPacking((rows, columns), grouping.bits, grouping.group(columns))


def _bytes(pieces: Pieces, grouping: Grouping, _: tuple[int, ...] | None) -> Packing:
    rows, columns = _codes_shape(pieces, grouping)
    _check_scales(pieces, grouping, rows, columns)
    return BytePacking((rows, columns), grouping.group(columns))


def _fp8(pieces: Pieces, grouping: Grouping, _: tuple[int, ...] | None) -> Packing:
    rows, columns = _codes_shape(pieces, grouping)
    group = grouping.group(columns)
    if not fp8_group(columns, group):
        raise _UnfitError(f"tensor {pieces['weight'].name!r}: floats of 8 bits in groups of {group} are not supported")
    _check_scales(pieces, grouping, rows, columns)
    return Fp8Packing((rows, columns), max(1, grouping.block_rows), group, grouping.scale)


def _mxfp4(pieces: Pieces, grouping: Grouping, _: tuple[int, ...] | None) -> Packing:
    blocks = pieces["blocks"]
    if blocks.dtype != "uint8" or len(blocks.shape) != 4 or 0 in blocks.shape or blocks.shape[3] != FP4_BLOCK // 2:
        raise _UnfitError(
            f"tensor {blocks.name!r} must be uint8 [experts, rows, blocks, 16], not {blocks.dtype} {list(blocks.shape)}"
        )
    experts, rows, count, _bytes = blocks.shape
    _check(pieces["scales"], ("uint8",), [(experts, rows, count)], grouping)
    return Mxfp4Packing((experts * rows, count * FP4_BLOCK))


_MAKERS: dict[Storage, Callable[[Pieces, Grouping, tuple[int, ...] | None], Packing]] = {
    "gptq": _gptq,
    "awq": _awq,
    "words": _words,
    "bytes": _bytes,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
}
