"""Writing the weights of a Hugging Face directory (https://github.com/huggingface/safetensors, "Format")."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from windlass.quantization import Format
from windlass.weights.safetensors import INDEX_NAME, SINGLE_NAME

SHARD_BYTES = 4 << 30
"""A file has no more, but for a single tensor that is larger."""

_DTYPES = {Format.F32: "F32", Format.F16: "F16", Format.BF16: "BF16"}


class SafetensorsWriter:
    """Writes tensors of one float format to one file, or to several and an index.

    All names and shapes are known from the start, since they come first in a file. ``write`` the numbers in that order,
    then ``finish``; leaving the ``with`` block closes the file that is open.
    """

    def __init__(self, directory: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], format_: Format) -> None:
        """Plan the files of an existing directory.

        Args:
            directory: where they go.
            tensors: name and shape of each, none of them empty.
            format_: F32, F16 or BF16.
        """
        self._directory = directory
        self._dtype = _DTYPES[format_]
        self._itemsize = 4 if format_ is Format.F32 else 2
        self._shards: list[list[tuple[str, tuple[int, ...]]]] = []
        filled = SHARD_BYTES
        for name, shape in tensors:
            nbytes = self._nbytes(shape)
            if filled + nbytes > SHARD_BYTES:
                self._shards.append([])
                filled = 0
            self._shards[-1].append((name, shape))
            filled += nbytes
        self._next = 0
        self._file: BinaryIO | None = None
        self._left = 0

    def __enter__(self) -> SafetensorsWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()

    def write(self, piece: NDArray[Any]) -> None:
        """Write the next numbers: a tensor or some of its rows. bfloat16 comes as uint16 bit patterns.

        Raises:
            ValueError: there is no tensor left, or less is left of it.
        """
        if self._left == 0:
            self._open_next()
        if self._file is None or piece.nbytes > self._left:
            raise ValueError(f"{piece.nbytes} bytes are more than the {self._left} that the file has room for")
        self._file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        self._left -= piece.nbytes
        if self._left == 0:
            self._file.close()
            self._file = None

    def finish(self) -> None:
        """Write the index where there are several files.

        Raises:
            ValueError: numbers are missing.
        """
        if self._left or self._next < len(self._shards):
            raise ValueError("there are tensors that were not written")
        if len(self._shards) > 1:
            weight_map = {name: self._name(number) for number, shard in enumerate(self._shards) for name, _ in shard}
            total = sum(self._nbytes(shape) for shard in self._shards for _, shape in shard)
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
            (self._directory / INDEX_NAME).write_text(f"{text}\n", encoding="utf-8")

    def _open_next(self) -> None:
        if self._next == len(self._shards):
            return
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in self._shards[self._next]:
            start, end = end, end + self._nbytes(shape)
            header[name] = {"dtype": self._dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._file = (self._directory / self._name(self._next)).open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._left = end
        self._next += 1

    def _name(self, number: int) -> str:
        count = len(self._shards)
        return SINGLE_NAME if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"

    def _nbytes(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self._itemsize
