"""Named tensors in files, whatever the files are: the table that the parsers fill, and reading from it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import mmap
import os
from collections.abc import Iterable, KeysView, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from windlass.errors import LoadError
from windlass.late_numpy import np
from windlass.quantization import Format, Scheme, Tensor, bf16_to_f32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from windlass.quantization.checkpoints import Packing
    from windlass.quantization.ggml import GgmlType

StoredType = Literal[
    "float32", "float16", "bfloat16", "float8", "uint32", "int64", "int32", "int8", "uint8", "blocks", "pieces"
]

_NUMPY_TYPES: dict[StoredType, str] = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float8": "u1",
    "uint32": "<u4",
    "int64": "<i8",
    "int32": "<i4",
    "int8": "i1",
    "uint8": "u1",
    "blocks": "u1",
    "pieces": "u1",
}
_FORMATS: dict[StoredType, Format] = {"float32": Format.F32, "float16": Format.F16, "bfloat16": Format.BF16}
_MAX_DIMENSIONS = 8
_SAMPLE = 256
_MAX_MAPPINGS = 32
"""Files mapped at once. Each costs a descriptor, and a large MLC model has more shards than a process may open."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes are: ``nbytes`` at ``offset`` of ``file``, C order, little-endian.

    ``dtype`` is what ``WeightSource.read`` returns, bfloat16 as uint16 bit patterns. With ``widened`` the file holds
    bfloat16 and ``dtype`` is float32. Numbers of a GGUF file in ``blocks`` of ``kind`` are read as bytes, [N, bytes of
    a row]. With ``paired_heads`` the file has the rows of each of so many heads in the order for rotation in pairs
    (0, 1), (2, 3), ...; they are read in that for rotation by halves.

    A matrix of a quantized checkpoint stands for its ``pieces``, stored tensors by the last part of their names, of
    which ``packing`` makes it: the first one's file and offset, the bytes of all.
    """

    name: str
    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: StoredType
    widened: bool = False
    kind: GgmlType | None = None
    paired_heads: int = 0
    packing: Packing | None = None
    pieces: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def format(self) -> Format | None:
        """The format of a float tensor, None for others."""
        return _FORMATS.get(self.dtype)

    @property
    def quantized_bits(self) -> float | None:
        """Bits that a number takes in memory, None for a tensor that is not quantized in its file."""
        if self.packing is not None:
            return self.packing.bits
        return None if self.kind is None else self.kind.bits


class WeightSource:
    """The tensors of one model directory.

    Invariant: every extent lay inside its file when the table was made. Files are mapped when first read from.
    For one thread. ``scheme`` is that of an MLC directory, None for one that stores Hugging Face tensors.
    """

    def __init__(self, path: Path, tensors: Iterable[StoredTensor], scheme: Scheme | None = None) -> None:
        """Make a source whose table came from ``path`` (a file or directory, named in errors)."""
        self.path = path
        self.scheme = scheme
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._mappings: dict[Path, mmap.mmap] = {}
        self._closed = False

    @property
    def names(self) -> KeysView[str]:
        """The names of all tensors."""
        return self._tensors.keys()

    def info(self, name: str) -> StoredTensor:
        """Return what is known of a tensor. KeyError when there is none of this name."""
        return self._tensors[name]

    def rename(self, prefixes: Sequence[tuple[str, str]]) -> None:
        """Have each tensor whose name begins with the first of a pair go by a name that begins with the second.

        The first pair that fits a name counts.

        Raises:
            LoadError: two tensors would have one name.
        """
        tensors: dict[str, StoredTensor] = {}
        for name, tensor in self._tensors.items():
            new = next((to + name[len(of) :] for of, to in prefixes if name.startswith(of)), name)
            if new in tensors:
                raise LoadError(tensor.file, f"tensor {name!r} and another would both be {new!r}")
            tensors[new] = dataclasses.replace(tensor, name=new)
        self._tensors = tensors

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor, read-only, aligned to its item size; a view of the mapped file where that is possible.

        The view stays valid after ``close``: a file is unmapped when neither this source nor any view needs it.

        Raises:
            LoadError: the file cannot be mapped, or has shrunk since the table was made.
            ValueError: the source is closed.
        """
        return self._read(self._tensors[name])

    def read_quantized(self, name: str) -> Tensor:
        """Return the tensor of exactly the numbers of one that is quantized in its file.

        Raises:
            LoadError: as ``read``.
            ValueError: the source is closed, the tensor is not quantized, or a number is impossible or not finite.
        """
        stored = self._tensors[name]
        with np.errstate(over="ignore", invalid="ignore"):  # of damaged scales
            if stored.packing is not None:
                tensor = stored.packing.tensor({key: self._read_piece(piece) for key, piece in stored.pieces.items()})
            elif stored.kind is not None:
                from windlass.quantization.ggml import to_tensor  # for GGUF only

                tensor = to_tensor(stored.kind, self._read(stored), stored.shape)
            else:
                raise ValueError(f"{name} is not quantized")
            numbers = [tensor.data] if tensor.scales is None else tensor.group_numbers()
        if not all(np.isfinite(array).all() for array in numbers if array is not None):
            raise ValueError("a number is not finite")
        return tensor

    def _read_piece(self, piece: StoredTensor) -> NDArray[Any]:
        data = self._read(piece)
        return bf16_to_f32(data) if piece.dtype == "bfloat16" else data

    def _read(self, tensor: StoredTensor) -> NDArray[Any]:
        stored = np.dtype("<u2" if tensor.widened else _NUMPY_TYPES[tensor.dtype])
        count = tensor.nbytes // stored.itemsize
        array: NDArray[Any] = np.empty(0, stored)  # an empty file cannot be mapped
        if count:
            array = np.frombuffer(self._mapping(tensor), stored, count, tensor.offset)
        if tensor.widened:
            array = bf16_to_f32(array)
        elif not array.flags.aligned:
            array = array.copy()
        array = array.reshape(tensor.shape if tensor.kind is None else (*tensor.shape[:-1], -1))
        if tensor.paired_heads:
            array = _by_halves(array, tensor.paired_heads)
        array.flags.writeable = False
        return array

    def fingerprint(self) -> bytes:
        """Return a hash of 32 bytes that other tensors do not have, without reading all of them.

        It is made from the table, the sizes and times of the files, and a few bytes out of the middle of each tensor;
        where the files lie does not matter.

        Raises:
            LoadError: a file cannot be read.
        """
        digest = hashlib.sha256()
        by_file: dict[Path, list[StoredTensor]] = {}
        for tensor in self._tensors.values():
            if tensor.packing is not None:
                digest.update(repr((tensor.name, tensor.packing)).encode())
            for stored in tensor.pieces.values() if tensor.packing is not None else (tensor,):
                by_file.setdefault(stored.file, []).append(stored)
        for file, tensors in sorted(by_file.items()):
            try:
                with file.open("rb", buffering=0) as opened:
                    status = os.fstat(opened.fileno())
                    digest.update(repr((file.name, status.st_size, status.st_mtime_ns)).encode())
                    for tensor in tensors:
                        digest.update(_entry(tensor).encode())
                        digest.update(os.pread(opened.fileno(), _SAMPLE, tensor.offset + tensor.nbytes // 2))
            except OSError as error:
                raise LoadError(file, f"cannot be read: {error.strerror}") from error
        return digest.digest()

    def let_go(self, name: str) -> None:
        """Give the memory of a tensor that was read back to the system. Views of it stay valid: they are read again."""
        tensor = self._tensors[name]
        for piece in tensor.pieces.values():
            self._let_go(piece)
        if tensor.packing is None:
            self._let_go(tensor)

    def _let_go(self, tensor: StoredTensor) -> None:
        mapping = self._mappings.get(tensor.file)
        if tensor.nbytes and mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            start = tensor.offset // mmap.PAGESIZE * mmap.PAGESIZE
            mapping.madvise(mmap.MADV_DONTNEED, start, tensor.offset + tensor.nbytes - start)

    def close(self) -> None:
        """Unmap every file of which no view is left; the others go with their last view. Repeatable."""
        self._closed = True
        while self._mappings:
            _, mapping = self._mappings.popitem()
            with contextlib.suppress(BufferError):  # raised while there are views
                mapping.close()

    def __enter__(self) -> WeightSource:
        """Return the source itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source."""
        self.close()

    def _mapping(self, tensor: StoredTensor) -> mmap.mmap:
        if self._closed:
            raise ValueError("the weight source is closed")
        mapping = self._mappings.get(tensor.file)
        if mapping is None:
            if len(self._mappings) >= _MAX_MAPPINGS:
                del self._mappings[next(iter(self._mappings))]
            mapping = _map(tensor.file)
            self._mappings[tensor.file] = mapping
        if tensor.offset + tensor.nbytes > len(mapping):
            raise LoadError(tensor.file, f"the file has shrunk while it was read; {tensor.name} is no longer in it")
        return mapping


def _entry(tensor: StoredTensor) -> str:
    """Say all that is known of a tensor but its file."""
    kind = tensor.kind and tensor.kind.name
    facts = (tensor.name, tensor.offset, tensor.nbytes, tensor.shape, tensor.dtype, tensor.widened)
    return repr((*facts, kind, tensor.paired_heads))


def _by_halves(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Of the rows of each head those with even numbers, then the others."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _map(file: Path) -> mmap.mmap:
    try:
        with file.open("rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: the file is empty
        raise LoadError(file, f"cannot be mapped: {error}") from error


def file_size(path: Path) -> int:
    """Return a file's size in bytes. LoadError when it cannot be told."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise LoadError(path, f"cannot be read: {error.strerror}") from error


def parse_shape(file: Path, name: str, value: object) -> tuple[int, ...]:
    """Return a shape found in ``file``. LoadError unless it is a list of at most 8 numbers, none negative."""
    if (
        not isinstance(value, list)
        or len(value) > _MAX_DIMENSIONS
        or not all(type(item) is int and 0 <= item < 1 << 48 for item in value)
    ):
        raise LoadError(file, f"tensor {name!r} has no acceptable shape: {str(value)[:100]}")
    return tuple(value)


def check_extents(file: Path, tensors: list[StoredTensor], start: int, stop: int) -> None:
    """Check that the tensors, all in ``file``, have the sizes of their shapes and lie apart, between two offsets.

    Raises:
        LoadError: naming the tensor that does not.
    """
    end = start
    previous = ""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        itemsize = 2 if tensor.widened else int(_NUMPY_TYPES[tensor.dtype][-1])
        if tensor.kind is None and math.prod(tensor.shape) * itemsize != tensor.nbytes:
            raise LoadError(
                file, f"tensor {tensor.name!r}: {tensor.nbytes} bytes do not fit {tensor.dtype} {list(tensor.shape)}"
            )
        if tensor.offset < start or tensor.offset + tensor.nbytes > stop:
            raise LoadError(file, f"tensor {tensor.name!r} reaches outside the file; it is truncated or damaged")
        if tensor.offset < end:
            raise LoadError(file, f"tensors {previous!r} and {tensor.name!r} overlap")
        end = tensor.offset + tensor.nbytes
        previous = tensor.name
