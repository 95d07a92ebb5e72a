"""Reading GGUF files, versions 2 and 3 (github.com/ggml-org/ggml, docs/gguf.md): metadata and the table of tensors.

Nothing of a file is believed before it is checked: every count is held against the bytes that are left, every size
against the file, before anything is allocated or read by it.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from windlass.errors import LoadError
from windlass.weights.source import StoredTensor, StoredType, check_extents

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4
MAX_KEY_BYTES = 1 << 16
MAX_NAME_BYTES = 1 << 16
MAX_NESTING = 4
MAX_SPLITS = 1024

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<B"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_LEAST_BYTES = {_STRING: 8, _ARRAY: 12, **{kind: scalar.size for kind, scalar in _SCALARS.items()}}
_FLOATS: dict[str, StoredType] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_OTHER_MODELS = ("config.json", "mlc-chat-config.json")
_FILE_NAME = re.compile(r"(?P<stem>.+?)(-(?P<number>\d{5})-of-(?P<count>\d{5}))?\.gguf")


@dataclass(frozen=True, slots=True, eq=False)
class GgufModel:
    """A GGUF model: one file, or all files of a split one.

    Attributes:
        path: the (first) file.
        metadata: keys and values of the first file: str, int, float, bool, or lists of these.
        tensors: all tensors; shapes are [N, K] with rows of K consecutive numbers, the reverse of the file's order.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: list[StoredTensor]


def first_files(directory: Path) -> list[Path]:
    """Return the GGUF files of ``directory`` that a model begins with, in order: not the rest of a split one.

    Raises:
        OSError: it cannot be read.
    """
    names = ((file, _FILE_NAME.fullmatch(file.name)) for file in sorted(directory.glob("*.gguf")))
    return [file for file, name in names if name is None or int(name["number"] or 1) == 1]


def stem_of(file_name: str) -> str:
    """Return the name of a GGUF file without its ending and its number among the files of a split model."""
    name = _FILE_NAME.fullmatch(file_name)
    return file_name if name is None else name["stem"]


def split_names(file_name: str) -> tuple[str, ...]:
    """Return the names of all files of the model that a GGUF file is one of, by its name alone, the first one first."""
    name = _FILE_NAME.fullmatch(file_name)
    if name is None or not 1 <= int(name["number"] or 0) <= int(name["count"] or 0) <= MAX_SPLITS:
        return (file_name,)
    stem, count = name["stem"], name["count"]
    return tuple(f"{stem}-{number:05}-of-{count}.gguf" for number in range(1, int(count) + 1))


def find_gguf(path: Path) -> Path | None:
    """Return the GGUF file that ``path`` is, or that a directory without another model has; None when there is none.

    Raises:
        LoadError: the directory has several models.
    """
    try:
        if path.is_file():
            with path.open("rb") as opened:
                return path if opened.read(4) == MAGIC or path.suffix == ".gguf" else None
        if not path.is_dir() or any((path / name).is_file() for name in _OTHER_MODELS):
            return None
        first = first_files(path)
    except OSError as error:
        raise LoadError(path, f"cannot be read: {error.strerror}") from error
    if len(first) > 1:
        raise LoadError(path, f"has several models; name one of {', '.join(file.name for file in first)}")
    return first[0] if first else None


def read_gguf(path: Path) -> GgufModel:
    """Read and check the header of a GGUF file, and of the files it continues in.

    Raises:
        LoadError: it is not one, or breaks a rule of the format.
    """
    metadata, tensors = _read_file(path)
    count = metadata.get("split.count", 0)
    if type(count) is not int or not 0 <= count <= MAX_SPLITS:
        raise LoadError(path, f"split.count must be an integer from 0 to {MAX_SPLITS}, not {count!r}")
    if count > 1:
        tensors = _read_splits(path, metadata, tensors, count)
    return GgufModel(path, metadata, tensors)


def _read_splits(path: Path, metadata: dict[str, Any], tensors: list[StoredTensor], count: int) -> list[StoredTensor]:
    named = _FILE_NAME.fullmatch(path.name)
    if metadata.get("split.no") != 0 or named is None or (named["number"], named["count"]) != ("00001", f"{count:05}"):
        raise LoadError(path, f"the model is split into {count} files: give the first, ...-00001-of-{count:05}.gguf")
    known = {tensor.name: tensor for tensor in tensors}
    for number in range(1, count):
        part = path.with_name(f"{named['stem']}-{number + 1:05}-of-{count:05}.gguf")
        own, found = _read_file(part)
        if own.get("split.no") != number or own.get("split.count") != count:
            raise LoadError(part, f"does not say that it is file {number + 1} of {count}")
        for tensor in found:
            if known.setdefault(tensor.name, tensor) is not tensor:
                raise LoadError(part, f"tensor {tensor.name!r} is in {known[tensor.name].file.name} too")
    expected = metadata.get("split.tensors.count", len(known))
    if expected != len(known):
        raise LoadError(path, f"split.tensors.count is {expected!r}, but the files have {len(known)} tensors")
    return list(known.values())


def _read_file(path: Path) -> tuple[dict[str, Any], list[StoredTensor]]:
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(path, data).read()
    except (OSError, ValueError) as error:  # ValueError: the file is empty
        reason = error.strerror if isinstance(error, OSError) else "the file is empty"
        raise LoadError(path, f"cannot be read: {reason}") from error


class _Header:
    """A cursor over a mapped file that never goes past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._at = 0

    def read(self) -> tuple[dict[str, Any], list[StoredTensor]]:
        if self._data[:4] != MAGIC:
            raise self._error("does not begin with 'GGUF'")
        self._at = 4
        version = self._number(4)
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
            hint = " (it is big-endian)" if swapped in VERSIONS else ""
            raise LoadError(self._path, f"GGUF version {version}{hint} is not supported; supported: 2 and 3")
        num_tensors, num_keys = self._number(10), self._number(10)
        self._check_count(num_tensors, 8 + 4 + 4 + 8, "tensors")
        self._check_count(num_keys, 8 + 4 + 1, "keys")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string(MAX_KEY_BYTES)
            if key in metadata:
                raise self._error(f"has the key {key[:100]!r} twice")
            metadata[key] = self._value(self._number(4), MAX_NESTING)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._error(f"general.alignment must be a power of two from 8 to {MAX_ALIGNMENT}, not {alignment!r}")
        entries = [self._tensor() for _ in range(num_tensors)]
        start = -(-self._at // alignment) * alignment
        tensors = [place(start) for place in entries]
        names = {tensor.name for tensor in tensors}
        if len(names) < len(tensors):
            raise self._error("has two tensors of the same name")
        for tensor in tensors:
            if (tensor.offset - start) % alignment:
                raise self._error(f"tensor {tensor.name!r} does not begin at a multiple of {alignment}")
        check_extents(self._path, tensors, min(start, self._size), self._size)
        return metadata, tensors

    def _tensor(self) -> Callable[[int], StoredTensor]:
        """Read an entry of the table; return what makes a tensor of it once the start of the data is known."""
        name = self._string(MAX_NAME_BYTES)
        num_dimensions = self._number(4)
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self._error(f"tensor {name[:100]!r} has {num_dimensions} dimensions; at most {MAX_DIMENSIONS} exist")
        dimensions = [self._number(10) for _ in range(num_dimensions)]
        number, offset = self._number(4), self._number(10)
        from windlass.quantization.ggml import GGML_TYPES  # other formats start without it

        kind = GGML_TYPES.get(number)
        if kind is None:
            accepted = ", ".join(known.name for known in GGML_TYPES.values())
            raise self._error(f"tensor {name[:100]!r} has the type {number}, which is not one of {accepted}")
        elements = 1
        for dimension in dimensions:
            elements *= dimension
            if not 0 < dimension < 1 << 48 or elements >= 1 << 48:
                raise self._error(f"tensor {name[:100]!r} has no acceptable shape: {dimensions}")
        if dimensions[0] % kind.block:
            raise self._error(
                f"tensor {name[:100]!r}: rows of {dimensions[0]} are not made of whole blocks of {kind.name}, "
                f"which have {kind.block} numbers"
            )
        shape = tuple(reversed(dimensions))
        nbytes = elements // kind.block * kind.block_bytes
        return lambda start: StoredTensor(
            name=name,
            file=self._path,
            offset=start + offset,
            nbytes=nbytes,
            shape=shape,
            dtype=_FLOATS.get(kind.name, "blocks"),
            kind=None if kind.split is None else kind,
        )

    def _value(self, kind: int, depth: int) -> Any:
        if kind == _STRING:
            return self._string(self._size)
        if kind == _ARRAY:
            return self._array(depth)
        if kind not in _SCALARS:
            raise self._error(f"has a value of type {kind}, which does not exist")
        value = self._number(kind)
        if kind == _BOOL:
            if value not in (0, 1):
                raise self._error(f"has a truth value of {value}")
            return bool(value)
        return value

    def _array(self, depth: int) -> list[Any]:
        kind, count = self._number(4), self._number(10)
        if depth == 0:
            raise self._error(f"has arrays nested more than {MAX_NESTING} deep")
        if kind not in _LEAST_BYTES:
            raise self._error(f"has an array of type {kind}, which does not exist")
        self._check_count(count, _LEAST_BYTES[kind], "entries of an array")
        if kind in _SCALARS and kind != _BOOL:
            scalar = _SCALARS[kind]
            start = self._take(count * scalar.size)
            return list(struct.unpack_from(f"<{count}{scalar.format[-1]}", self._data, start))
        return [self._value(kind, depth - 1) for _ in range(count)]

    def _string(self, most: int) -> str:
        length = self._number(10)
        if length > most:
            raise self._error(f"has a string of {length} bytes, {most} are the most here")
        start = self._take(length)
        return self._data[start : start + length].decode("utf-8", errors="surrogateescape")

    def _number(self, kind: int) -> Any:
        scalar = _SCALARS[kind]
        return scalar.unpack_from(self._data, self._take(scalar.size))[0]

    def _take(self, count: int) -> int:
        """Go ahead by ``count`` bytes; return where they begin."""
        start = self._at
        if count > self._size - start:
            raise self._error(f"it ends within its header, {count} bytes from {start} on are missing")
        self._at = start + count
        return start

    def _check_count(self, count: int, least: int, what: str) -> None:
        if count > (self._size - self._at) // least:
            raise self._error(f"it is said to have {count} {what}, for which it is too small")

    def _error(self, reason: str) -> LoadError:
        return LoadError(self._path, f"this is no GGUF file, or a damaged one: {reason}")
