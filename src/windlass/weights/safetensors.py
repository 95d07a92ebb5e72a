"""Reading safetensors files (https://github.com/huggingface/safetensors, "Format"), alone and sharded."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from windlass.errors import LoadError
from windlass.json_files import MAX_JSON_BYTES, parse_json_object, read_json_object
from windlass.weights.files import sibling
from windlass.weights.source import StoredTensor, StoredType, WeightSource, check_extents, file_size, parse_shape

if TYPE_CHECKING:
    from windlass.weights.quantized import Grouping

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_DTYPES: dict[str, StoredType] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_QUANTIZED_DTYPES: dict[str, StoredType] = {
    **_DTYPES,
    "F8_E4M3": "float8",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
}
"""Those of quantized checkpoints."""

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def open_safetensors(directory: Path, groupings: Sequence[Grouping] | None = None) -> WeightSource:
    """Open the weights of a Hugging Face directory: the shards its index names, or else its one file.

    Only headers are read here.

    Args:
        directory: where they are.
        groupings: what quantized matrices may be; None for a checkpoint that is not quantized.

    Raises:
        LoadError: there are none, or they break a rule of the format; nothing is loaded from pickle files.
    """
    dtypes = _DTYPES if groupings is None else _QUANTIZED_DTYPES
    for path, read in ((directory / INDEX_NAME, _read_index), (directory / SINGLE_NAME, read_header)):
        if path.is_file():
            tensors = read(path, dtypes)
            if groupings is not None:
                from windlass.weights.quantized import quantized_tensors  # for such checkpoints only

                tensors = quantized_tensors(path, tensors, groupings)
            return WeightSource(path, tensors)
    pickled = sorted(entry.name for entry in directory.iterdir() if entry.suffix in _PICKLE_SUFFIXES)
    if pickled:
        raise LoadError(
            directory / pickled[0],
            "pickled weights can run code and are not loaded; convert to safetensors "
            "(transformers: model.save_pretrained(directory, safe_serialization=True))",
        )
    raise LoadError(directory, f"there are no weights: neither {SINGLE_NAME} nor {INDEX_NAME}")


def read_header(path: Path, dtypes: Mapping[str, StoredType] = _DTYPES) -> list[StoredTensor]:
    """Read and check the header of one safetensors file.

    Raises:
        LoadError: the file is not one, is truncated, or has a tensor of another dtype than those of ``dtypes``.
    """
    size = file_size(path)
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if length > MAX_JSON_BYTES or length > size - 8:
                if prefix.startswith(_PICKLE_STARTS):
                    raise LoadError(path, "this is a pickle, not safetensors; convert it to safetensors")
                raise LoadError(
                    path,
                    f"not a safetensors file, or a truncated one: the header is said to have {length} bytes, "
                    f"the file has {size} (at most {MAX_JSON_BYTES} are accepted for a header)",
                )
            text = file.read(length)
    except OSError as error:
        raise LoadError(path, f"cannot be read: {error.strerror}") from error
    header = parse_json_object(path, text, what="the header", unique_keys=True)
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = [_parse_tensor(path, name, entry, start, dtypes) for name, entry in header.items()]
    check_extents(path, tensors, start, size)
    used = sum(tensor.nbytes for tensor in tensors)
    if used != size - start:
        raise LoadError(path, f"the file has {size - start} bytes of data, its tensors {used}")
    return tensors


def _parse_tensor(path: Path, name: str, entry: object, start: int, dtypes: Mapping[str, StoredType]) -> StoredTensor:
    """Return one entry of a header whose data begins at ``start``."""
    if not isinstance(entry, dict):
        raise LoadError(path, f"the header's entry for tensor {name!r} is not an object")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise LoadError(path, f"tensor {name!r} has dtype {dtype!r}; supported: {', '.join(dtypes)}")
    offsets = entry.get("data_offsets")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int for offset in offsets)
        or not 0 <= offsets[0] <= offsets[1]
    ):
        raise LoadError(path, f"tensor {name!r} has no acceptable data_offsets: {str(offsets)[:100]}")
    return StoredTensor(
        name=name,
        file=path,
        offset=start + offsets[0],
        nbytes=offsets[1] - offsets[0],
        shape=parse_shape(path, name, entry.get("shape")),
        dtype=dtypes[dtype],
    )


def _read_index(index: Path, dtypes: Mapping[str, StoredType]) -> list[StoredTensor]:
    """Read the index and the headers of its shards; each tensor must be where the index says, and only there."""
    weight_map = read_json_object(index, unique_keys=True).get("weight_map")
    if not isinstance(weight_map, dict):
        raise LoadError(index, "there is no object weight_map")
    shards = {shard: sibling(index, shard) for shard in dict.fromkeys(map(_shard_name, weight_map.values()))}
    found: dict[str, StoredTensor] = {}
    for shard, path in shards.items():
        for tensor in read_header(path, dtypes):
            listed = weight_map.get(tensor.name)
            if listed != shard:
                where = "does not list it" if listed is None else f"says it is in {listed}"
                raise LoadError(path, f"tensor {tensor.name!r} is in this file, but {index.name} {where}")
            found[tensor.name] = tensor
    missing = [name for name in weight_map if name not in found]
    if missing:
        raise LoadError(
            shards[weight_map[missing[0]]], f"tensor {missing[0]!r} is missing; {index.name} says it is here"
        )
    return list(found.values())


def _shard_name(value: object) -> str:
    """Return a value of the weight map as a hashable name; what is not a string is refused by ``sibling``."""
    return value if isinstance(value, str) else ""
