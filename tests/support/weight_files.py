"""Model files written by tests, byte by byte and independently of the package's own writers; and what stays open."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.quantization import f32_to_bf16

CODES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(np.uint16): "BF16",
    np.dtype(np.uint8): "F8_E4M3",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.int8): "I8",
}


def safetensors_bytes(tensors: Mapping[str, NDArray[Any]], header_edit: Any = None, pad: int = 0) -> bytes:
    """A safetensors file; uint16 arrays are bfloat16, uint8 ones float8.

    ``header_edit`` may change the parsed header before writing.

    The data begin at a multiple of eight bytes, plus ``pad``.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        end = len(data) + array.nbytes
        header[name] = {"dtype": CODES[array.dtype], "shape": list(array.shape), "data_offsets": [len(data), end]}
        data += array.tobytes()
    if header_edit is not None:
        header_edit(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + pad)
    return struct.pack("<Q", len(text)) + text + data


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]], **options: Any) -> None:
    """Write ``safetensors_bytes`` to a file."""
    path.write_bytes(safetensors_bytes(tensors, **options))


def write_sharded(directory: Path, shards: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
    """Write shards and their index; returns the index."""
    for name, tensors in shards.items():
        write_safetensors(directory / name, tensors)
    index = {"metadata": {}, "weight_map": {name: shard for shard, tensors in shards.items() for name in tensors}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def write_mlc(
    directory: Path, tensors: Mapping[str, NDArray[Any]], *, table: str = "tensor-cache.json"
) -> dict[str, Any]:
    """Write one MLC shard and its table: float32 as "f32-to-bf16", uint16 as bfloat16; returns the table."""
    names = {"float32": "float32", "float16": "float16", "uint16": "bfloat16", "uint32": "uint32"}
    records, data = [], b""
    for name, array in tensors.items():
        raw = (f32_to_bf16(array) if array.dtype == np.float32 else array).tobytes()
        records.append(
            {
                "name": name,
                "shape": list(array.shape),
                "dtype": names[array.dtype.name],
                "format": "f32-to-bf16",
                "nbytes": len(raw),
                "byteOffset": len(data),
            }
        )
        data += raw
    (directory / "params_shard_0.bin").write_bytes(data)
    shard = {
        "dataPath": "params_shard_0.bin",
        "format": "raw-shard",
        "nbytes": len(data),
        "md5sum": "",
        "records": records,
    }
    content = {"metadata": {"ParamSize": len(records)}, "records": [shard]}
    (directory / table).write_text(json.dumps(content))
    return content


def open_in(directory: Path) -> tuple[int, int]:
    """(mappings, descriptors) of this process into a directory."""
    root = str(directory.resolve())
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        mapped = sum(root in line for line in maps)
    links = []
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            links.append(os.readlink(f"/proc/self/fd/{entry}"))  # noqa: PTH115
        except FileNotFoundError:
            continue
    return mapped, sum(link.startswith(root) for link in links)
