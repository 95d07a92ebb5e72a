"""Reading GGUF headers: what is right is read, and whatever is wrong is a LoadError, whoever made the file."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass.errors import LoadError
from windlass.weights.gguf import find_gguf, read_gguf
from windlass.weights.source import WeightSource


def write(path: Path, **tensors: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("u", 7)
    writer.add_int64("i", -(2**40))
    writer.add_float32("f", 0.5)
    writer.add_bool("b", True)
    writer.add_string("s", "über")
    writer.add_array("a", [1, 2, 3])
    writer.add_array("words", ["x", "", "yz"])
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(
        tmp_path / "m.gguf",
        matrix=np.arange(12, dtype=np.float32).reshape(3, 4),
        half=np.arange(5, dtype=np.float16),
    )


def test_metadata_and_tensors(file: Path) -> None:
    model = read_gguf(file)
    assert model.metadata == {
        "general.architecture": "llama",
        "u": 7,
        "i": -(2**40),
        "f": 0.5,
        "b": True,
        "s": "über",
        "a": [1, 2, 3],
        "words": ["x", "", "yz"],
    }
    with WeightSource(file, model.tensors) as source:
        np.testing.assert_array_equal(source.read("matrix"), np.arange(12, dtype=np.float32).reshape(3, 4))
        np.testing.assert_array_equal(source.read("half"), np.arange(5, dtype=np.float16))


def header(*parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def entry(name: bytes = b"t", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HUGE = 2**64 - 1

BROKEN = {
    "empty": (b"", "the file is empty"),
    "other": (b"PK\x03\x04" + bytes(60), "does not begin with 'GGUF'"),
    "version 1": (header(version=1), "version 1 is not supported"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "short": (b"GGUF\x03\x00", "ends within its header"),
    "many tensors": (header(tensors=HUGE), "tensors, for which it is too small"),
    "many keys": (header(keys=HUGE), "keys, for which it is too small"),
    "long key": (header(struct.pack("<Q", HUGE), bytes(20), keys=1), "a string of 18446744073709551615 bytes"),
    "key past the end": (header(struct.pack("<Q", 60), bytes(20), keys=1), "ends within its header"),
    "unknown type": (header(string(b"k"), struct.pack("<I", 13), bytes(8), keys=1), "type 13, which does not exist"),
    "a truth of 2": (header(string(b"k"), struct.pack("<IB", 7, 2), bytes(8), keys=1), "a truth value of 2"),
    "long array": (
        header(string(b"k"), struct.pack("<IIQ", 9, 5, HUGE), bytes(8), keys=1),
        "entries of an array, for which it is too small",
    ),
    "array of nothing": (header(string(b"k"), struct.pack("<IIQ", 9, 99, 1), bytes(8), keys=1), "an array of type 99"),
    "deep array": (
        header(string(b"k"), struct.pack("<I", 9), struct.pack("<IQ", 9, 1) * 6, bytes(64), keys=1),
        "nested more than 4 deep",
    ),
    "key twice": (header((string(b"k") + struct.pack("<IB", 0, 1)) * 2, bytes(8), keys=2), "the key 'k' twice"),
    "alignment": (
        header(string(b"general.alignment"), struct.pack("<II", 4, 33), bytes(8), keys=1),
        "general.alignment must be a power of two",
    ),
    "no dimensions": (header(entry(dims=()), bytes(64), tensors=1), "has 0 dimensions"),
    "five dimensions": (header(entry(dims=(1,) * 5), bytes(64), tensors=1), "has 5 dimensions"),
    "an unknown tensor": (header(entry(kind=4), bytes(64), tensors=1), "has the type 4, which is not one of F32"),
    "an overflowing shape": (header(entry(dims=(2**32, 2**32)), bytes(64), tensors=1), "no acceptable shape"),
    "an empty dimension": (header(entry(dims=(4, 0)), bytes(64), tensors=1), "no acceptable shape"),
    "half a block": (header(entry(dims=(33,), kind=2), bytes(64), tensors=1), "not made of whole blocks of Q4_0"),
    "past the end": (header(entry(dims=(4000,)), bytes(64), tensors=1), "reaches outside the file"),
    "an overflowing offset": (header(entry(offset=HUGE - 31), bytes(64), tensors=1), "reaches outside the file"),
    "an odd offset": (header(entry(offset=4), bytes(128), tensors=1), "not begin at a multiple of 32"),
    "tensor twice": (header(entry(), entry(offset=32), bytes(128), tensors=2), "two tensors of the same name"),
    "overlap": (header(entry(dims=(16,)), entry(name=b"u", offset=32), bytes(256), tensors=2), "overlap"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused(tmp_path: Path, name: str) -> None:
    data, reason = BROKEN[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(LoadError) as caught:
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert reason in str(caught.value)
    assert caught.value.path == str(path)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8)), max_size=4),
    cut=st.none() | st.integers(0, 700),
)
def test_damaged_files_give_an_error_or_a_model(
    file: Path, tmp_path: Path, edits: list[tuple[int, bytes]], cut: int | None
) -> None:
    data = bytearray(file.read_bytes())
    for at, change in edits:
        at %= len(data)
        data[at : at + len(change)] = change
    path = tmp_path / "damaged.gguf"
    path.write_bytes(bytes(data[:cut]))
    try:
        model = read_gguf(path)
    except LoadError:
        return
    with WeightSource(path, model.tensors) as source:
        for tensor in model.tensors:
            assert source.read(tensor.name).shape[0] == tensor.shape[0]


def split(tmp_path: Path, count: int = 3) -> Path:
    for number in range(count):
        path = tmp_path / f"m-{number + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", count)
        writer.add_tensor(f"t{number}", np.full(3, number, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return tmp_path / f"m-00001-of-{count:05}.gguf"


def test_a_split_model(tmp_path: Path) -> None:
    first = split(tmp_path)
    model = read_gguf(first)
    with WeightSource(first, model.tensors) as source:
        assert [float(source.read(f"t{number}")[0]) for number in range(3)] == [0.0, 1.0, 2.0]
    assert find_gguf(tmp_path) == first
    with pytest.raises(LoadError, match=r"give the first, \.\.\.-00001-of-00003\.gguf"):
        read_gguf(tmp_path / "m-00002-of-00003.gguf")
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(LoadError, match="No such file"):
        read_gguf(first)


def test_finding_a_file(file: Path, tmp_path: Path) -> None:
    assert find_gguf(file) == file
    assert find_gguf(tmp_path) == file
    assert find_gguf(tmp_path / "none") is None
    other = tmp_path / "without-suffix"
    other.write_bytes(file.read_bytes())
    assert find_gguf(other) == other
    (tmp_path / "n.gguf").write_bytes(file.read_bytes())
    with pytest.raises(LoadError, match=r"several models; name one of m\.gguf, n\.gguf"):
        find_gguf(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert find_gguf(tmp_path) is None
