"""Reading and writing the tensors of an MLC directory: ``tensor-cache.json`` and its shards.

Older directories call the same file ``ndarray-cache.json``. Tensors lie back to back without alignment. A tensor of
dtype float32 and format "f32-to-bf16" is stored as bfloat16 bit patterns; for every other dtype that format means raw.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windlass.errors import LoadError
from windlass.json_files import json_type, read_json_object
from windlass.late_numpy import np
from windlass.quantization import Format, Scheme, Tensor, cast
from windlass.weights.files import sibling
from windlass.weights.source import StoredTensor, StoredType, WeightSource, check_extents, file_size, parse_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

CACHE_NAMES = ("tensor-cache.json", "ndarray-cache.json")

_DTYPES: tuple[StoredType, ...] = ("float32", "float16", "bfloat16", "uint32")
_SHARD_BYTES = 32 << 20


def open_mlc(directory: Path, scheme: Scheme, *, verify_md5: bool = False) -> WeightSource:
    """Open the weights of an MLC directory, stored by ``scheme``. Only the table is read here.

    Args:
        directory: the model's directory.
        scheme: the quantization that ``mlc-chat-config.json`` names.
        verify_md5: read every shard and compare its checksum.

    Raises:
        LoadError: the table is missing, breaks a rule of the format, or does not fit the files.
    """
    path = next((directory / name for name in CACHE_NAMES if (directory / name).is_file()), None)
    if path is None:
        raise LoadError(directory, f"there are no weights: neither {CACHE_NAMES[0]} nor {CACHE_NAMES[1]}")
    shards = read_json_object(path, unique_keys=True).get("records")
    if not isinstance(shards, list):
        raise LoadError(path, "there is no array records")
    tensors: dict[str, StoredTensor] = {}
    files: set[Path] = set()
    for shard in shards:
        for tensor in _read_shard(path, shard, verify_md5):
            if tensor.file in files:
                raise LoadError(path, f"{tensor.file.name} is listed twice")
            if tensor.name in tensors:
                raise LoadError(path, f"tensor {tensor.name!r} is listed twice")
            tensors[tensor.name] = tensor
        files.add(path.with_name(shard["dataPath"]))
    return WeightSource(path, tensors.values(), scheme)


def _read_shard(path: Path, shard: object, verify_md5: bool) -> list[StoredTensor]:
    """Return the tensors of one shard record of the table at ``path``."""
    if not isinstance(shard, dict):
        raise LoadError(path, f"a shard record must be an object, not {json_type(shard)}")
    file = sibling(path, shard.get("dataPath"))
    if shard.get("format") != "raw-shard":
        raise LoadError(path, f"{file.name} has format {shard.get('format')!r}; supported: 'raw-shard'")
    size = file_size(file)
    if shard.get("nbytes") != size:
        raise LoadError(file, f"the file has {size} bytes, {path.name} says {shard.get('nbytes')!r}; it is truncated?")
    if verify_md5 and _md5(file) != shard.get("md5sum"):
        raise LoadError(file, f"the checksum differs from that in {path.name}")
    records = shard.get("records")
    if not isinstance(records, list):
        raise LoadError(path, f"the record of {file.name} has no array records")
    tensors = [_parse_tensor(path, file, record) for record in records]
    check_extents(file, tensors, 0, size)
    return tensors


def _parse_tensor(path: Path, file: Path, record: object) -> StoredTensor:
    if not isinstance(record, dict) or not isinstance(record.get("name"), str):
        raise LoadError(path, f"a tensor record of {file.name} has no name")
    name = record["name"]
    if re.search(r"_shard-\d+$", name):
        raise LoadError(path, f"tensor {name!r} was split for tensor parallelism; such directories are not supported")
    dtype, encoding = record.get("dtype"), record.get("format")
    if dtype not in _DTYPES:
        raise LoadError(path, f"tensor {name!r} has dtype {dtype!r}; supported: {', '.join(_DTYPES)}")
    if encoding not in ("raw", "f32-to-bf16"):
        raise LoadError(path, f"tensor {name!r} has format {encoding!r}; supported: 'raw', 'f32-to-bf16'")
    offset, nbytes = record.get("byteOffset"), record.get("nbytes")
    if type(offset) is not int or type(nbytes) is not int or offset < 0 or nbytes < 0:
        raise LoadError(
            path, f"tensor {name!r} has no acceptable byteOffset and nbytes: {offset!r:.40}, {nbytes!r:.40}"
        )
    return StoredTensor(
        name=name,
        file=file,
        offset=offset,
        nbytes=nbytes,
        shape=parse_shape(path, name, record.get("shape")),
        dtype=dtype,
        widened=dtype == "float32" and encoding == "f32-to-bf16",
    )


class MlcWriter:
    """Writes the tensors of an MLC directory; ``add`` each, then ``finish``.

    Shards hold 32 MiB: a tensor that no longer fits starts the next shard, but one of 16 MiB or more gets a shard of
    its own and the current one goes on being filled.
    """

    def __init__(self, directory: Path) -> None:
        """Make a writer into an existing directory."""
        self._directory = directory
        self._shards: list[dict[str, Any]] = []
        self._pending = bytearray()
        self._pending_records: list[dict[str, Any]] = []
        self._memory_bytes = 0
        self._tensors = 0

    def add(self, name: str, array: NDArray[Any], dtype: StoredType) -> None:
        """Write one tensor; bfloat16 comes as uint16 bit patterns, float32 is stored rounded to bfloat16.

        Raises:
            ValueError: a float32 number is not finite or too large for bfloat16.
        """
        self._memory_bytes += array.nbytes
        self._tensors += 1
        if dtype == "float32":
            array = cast(Tensor(Format.F32, array.shape, array), Format.BF16).data
        shape = list(array.shape)
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        record = {"name": name, "shape": shape, "dtype": dtype, "format": "f32-to-bf16", "nbytes": len(data)}
        if len(self._pending) + len(data) >= _SHARD_BYTES:
            if 2 * len(data) >= _SHARD_BYTES:
                self._write_shard(data, [{**record, "byteOffset": 0}])
                return
            self._flush()
        self._pending_records.append({**record, "byteOffset": len(self._pending)})
        self._pending += data

    def finish(self, num_parameters: int) -> None:
        """Write the last shard and the table. ``num_parameters`` counts the model's weights before quantization."""
        self._flush()
        metadata = {
            "ParamSize": self._tensors,
            "ParamBytes": float(self._memory_bytes),
            "BitsPerParam": self._memory_bytes * 8.0 / num_parameters,
        }
        self._write_table("tensor-cache.json", metadata)

    def _flush(self) -> None:
        if self._pending:
            self._write_shard(self._pending, self._pending_records)
            self._pending, self._pending_records = bytearray(), []

    def _write_shard(self, data: bytearray | memoryview, records: list[dict[str, Any]]) -> None:
        name = f"params_shard_{len(self._shards)}.bin"
        (self._directory / name).write_bytes(data)
        self._shards.append(
            {
                "dataPath": name,
                "format": "raw-shard",
                "nbytes": len(data),
                "records": records,
                "md5sum": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            }
        )

    def _write_table(self, name: str, metadata: dict[str, Any]) -> None:
        text = json.dumps({"metadata": metadata, "records": self._shards}, indent=4)
        (self._directory / name).write_text(text, encoding="utf-8")


def _md5(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
