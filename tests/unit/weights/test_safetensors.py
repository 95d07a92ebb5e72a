"""Safetensors files: what is read, what is refused, and that nothing stays open."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.weight_files import open_in, safetensors_bytes, write_safetensors, write_sharded
from windlass.errors import LoadError
from windlass.quantization import Format
from windlass.weights import open_safetensors
from windlass.weights import source as source_module
from windlass.weights.safetensors import read_header

TENSORS: dict[str, Any] = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([1, -2.5, 0.125], np.float16),
    "c": np.array([[0x3F80, 0xC000]], np.uint16),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(7, np.float32),
}


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", TENSORS)
    with open_safetensors(tmp_path) as source:
        assert source.scheme is None
        assert set(source.names) == set(TENSORS)
        assert [source.info(name).format for name in "abc"] == [Format.F32, Format.F16, Format.BF16]
        for name, expected in TENSORS.items():
            array = source.read(name)
            assert array.dtype == expected.dtype
            assert np.array_equal(array, expected)
            assert array.shape == source.info(name).shape == expected.shape
            assert not array.flags.writeable


def test_the_format_is_that_of_the_safetensors_package(tmp_path: Path) -> None:
    numpy_format = pytest.importorskip("safetensors.numpy")
    tensors = {"x.weight": np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32), "y": np.ones(3, "f2")}
    numpy_format.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with open_safetensors(tmp_path) as source:
        assert set(source.names) == set(tensors)
        assert all(np.array_equal(source.read(name), array) for name, array in tensors.items())


@pytest.mark.parametrize("aligned", [True, False])
def test_views_are_aligned_and_outlive_the_source(tmp_path: Path, aligned: bool) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"a": TENSORS["a"]}, pad=0 if aligned else 1)
    with open_safetensors(tmp_path) as source:
        array = source.read("a")
    assert array.flags.aligned
    assert np.array_equal(array, TENSORS["a"])
    assert open_in(tmp_path)[0] == (1 if aligned else 0)  # a view of the file, or a copy
    del array
    assert open_in(tmp_path) == (0, 0)


def test_shards(tmp_path: Path) -> None:
    write_sharded(tmp_path, {"m-1.safetensors": {"a": TENSORS["a"]}, "m-2.safetensors": {"b": TENSORS["b"]}})
    with open_safetensors(tmp_path) as source:
        assert source.path.name == "model.safetensors.index.json"
        assert source.info("b").file.name == "m-2.safetensors"
        assert np.array_equal(source.read("a"), TENSORS["a"])
        assert np.array_equal(source.read("b"), TENSORS["b"])


def test_nothing_stays_open(tmp_path: Path) -> None:
    write_sharded(tmp_path, {f"m-{i}.safetensors": {f"t{i}": TENSORS["a"]} for i in range(3)})
    source = open_safetensors(tmp_path)
    assert open_in(tmp_path) == (0, 0)
    for name in source.names:
        source.read(name)
    assert open_in(tmp_path) == (3, 3)
    source.close()
    assert open_in(tmp_path) == (0, 0)
    source.close()
    with pytest.raises(ValueError, match="closed"):
        source.read("t0")


def test_few_files_are_mapped_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "_MAX_MAPPINGS", 2)
    write_sharded(tmp_path, {f"m-{i}.safetensors": {f"t{i}": TENSORS["a"] + i} for i in range(5)})
    with open_safetensors(tmp_path) as source:
        for _ in range(2):
            for i in range(5):
                assert np.array_equal(source.read(f"t{i}"), TENSORS["a"] + i)
                assert open_in(tmp_path)[0] <= 2
    assert open_in(tmp_path) == (0, 0)


def edit(name: str, **changes: Any) -> Any:
    return lambda header: header[name].update(changes)


BAD_HEADERS: list[tuple[Any, str]] = [
    (edit("a", dtype="I64"), r"'a' has dtype 'I64'; supported: F32, F16, BF16"),
    (edit("a", dtype=["F32"]), r"'a' has dtype \['F32'\]"),
    (edit("a", shape=[3, 5]), r"'a': 48 bytes do not fit float32 \[3, 5\]"),
    (edit("a", shape=[-3, -4]), "'a' has no acceptable shape"),
    (edit("a", shape=[True, 12]), "'a' has no acceptable shape"),
    (edit("a", shape=[2**62, 2**62]), "'a' has no acceptable shape"),
    (edit("a", shape=[1] * 9), "'a' has no acceptable shape"),
    (edit("a", shape="12"), "'a' has no acceptable shape"),
    (edit("a", data_offsets=[0]), "'a' has no acceptable data_offsets"),
    (edit("a", data_offsets=[48, 0]), "'a' has no acceptable data_offsets"),
    (edit("a", data_offsets=[-8, 40]), "'a' has no acceptable data_offsets"),
    (edit("a", data_offsets=[0.0, 48.0]), "'a' has no acceptable data_offsets"),
    (edit("a", data_offsets=[10**30, 10**30 + 48]), "'a' reaches outside the file"),
    (edit("b", data_offsets=[44, 50]), "'a' and 'b' overlap"),
    (edit("c", data_offsets=[48, 52]), "'c' and 'b' overlap"),
    (lambda header: header.update(a=[1]), "entry for tensor 'a' is not an object"),
    (lambda header: header.pop("b"), "bytes of data, its tensors"),
]


@pytest.mark.parametrize(("change", "message"), BAD_HEADERS, ids=[message for _, message in BAD_HEADERS])
def test_bad_headers(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS, header_edit=change)
    with pytest.raises(LoadError, match=message) as caught:
        open_safetensors(tmp_path)
    assert caught.value.path == str(path)


def test_truncated_and_extended_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    whole = safetensors_bytes({name: TENSORS[name] for name in "abc"})
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(LoadError):
            open_safetensors(tmp_path)
    path.write_bytes(whole + b"x")
    with pytest.raises(LoadError, match="the file has 59 bytes of data, its tensors 58"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file has 0"),
        (struct.pack("<Q", 1 << 63) + b"{}", "the header is said to have 9223372036854775808 bytes, the file has 10"),
        (struct.pack("<Q", 2) + b"[]", "the header must be a JSON object, not an array"),
        (struct.pack("<Q", 3) + b"{a}", "the header is not JSON: .* line 1 column 2"),
        (struct.pack("<Q", 2) + b"\xff\xfe", "not UTF-8 at byte 0"),
        (struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995, "nested too deeply"),
        (struct.pack("<Q", 9_005) + b'{"a":' + b"9" * 8_999 + b"}", "not acceptable JSON"),
        (struct.pack("<Q", 14) + b'{"a":1, "a":2}', "the header has the key 'a' twice"),
        (b"PK\x03\x04" + bytes(100), "this is a pickle"),
        (b"\x80\x02}q\x00." + bytes(100), "this is a pickle"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(LoadError, match=message):
        open_safetensors(tmp_path)


def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS, pad=0x480 - struct.unpack("<Q", VALID[:8])[0])
    assert path.read_bytes().startswith(b"\x80\x04")
    with open_safetensors(tmp_path) as source:
        assert np.array_equal(source.read("a"), TENSORS["a"])


def test_a_header_longer_than_the_cap_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:  # a sparse file: its size is real, its bytes take no room
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)
    with pytest.raises(LoadError, match="at most 100000000 are accepted for a header"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(LoadError, match=r"pickled .* convert to safetensors"):
        open_safetensors(tmp_path)


def test_a_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("weight_map"), "there is no object weight_map"),
        (lambda index: index["weight_map"].update(a="../m-1.safetensors"), "'../m-1.safetensors' is not the name of"),
        (lambda index: index["weight_map"].update(a="/etc/passwd"), "'/etc/passwd' is not the name of a file"),
        (lambda index: index["weight_map"].update(a=".."), "'..' is not the name of a file"),
        (lambda index: index["weight_map"].update(a=3), "is not the name of a file"),
        (lambda index: index["weight_map"].update(a="m-9.safetensors"), "m-9.safetensors: the file is missing"),
        (lambda index: index["weight_map"].update(z="m-1.safetensors"), "m-1.safetensors: tensor 'z' is missing"),
        (lambda index: index["weight_map"].update(a="m-2.safetensors"), "'a' is in this file, but .* it is in m-2"),
        (lambda index: index["weight_map"].pop("b"), "'b' is in this file, but .* does not list it"),
    ],
)
def test_bad_indexes(tmp_path: Path, change: Any, message: str) -> None:
    index = write_sharded(
        tmp_path, {"m-1.safetensors": {"a": TENSORS["a"], "b": TENSORS["b"]}, "m-2.safetensors": {"c": TENSORS["c"]}}
    )
    change(index)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match=message):
        open_safetensors(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    one = {"a": TENSORS["a"]}
    write_sharded(tmp_path, {"m-1.safetensors": {**one, "b": TENSORS["b"]}, "m-2.safetensors": one})
    with pytest.raises(LoadError, match=r"m-1\.safetensors: tensor 'a' is in this file, but .* says it is in m-2"):
        open_safetensors(tmp_path)


def test_a_file_that_shrinks_after_the_check(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS)
    with open_safetensors(tmp_path) as source:
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(LoadError, match="has shrunk"):
            source.read("c")
        path.write_bytes(b"")
    with open_safetensors_after_write(tmp_path) as source:
        path.unlink()
        with pytest.raises(LoadError, match="cannot be mapped"):
            source.read("c")


def open_safetensors_after_write(directory: Path) -> Any:
    write_safetensors(directory / "model.safetensors", TENSORS)
    return open_safetensors(directory)


VALID = safetensors_bytes(TENSORS)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, len(VALID)),
    tail=st.binary(max_size=16),
)
def test_damaged_files_are_refused_or_read_within_bounds(
    tmp_path: Path, edits: list[tuple[int, int]], cut: int, tail: bytes
) -> None:
    content = bytearray(VALID)
    for position, value in edits:
        content[position] = value
    path = tmp_path / "fuzzed.safetensors"
    path.write_bytes(bytes(content[:cut] if cut % 3 == 0 else content) + (tail if cut % 5 == 0 else b""))
    try:
        tensors = read_header(path)
    except LoadError:
        return
    size = path.stat().st_size
    assert all(8 <= tensor.offset <= tensor.offset + tensor.nbytes <= size for tensor in tensors)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["F32", "BF16"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.just("F32") | JSON,
        "shape": JSON,
        "data_offsets": st.lists(st.integers(), max_size=3) | JSON,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=4), data=st.binary(max_size=32))
def test_any_json_for_a_header_is_refused_or_sound(tmp_path: Path, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "fuzzed.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    try:
        tensors = read_header(path)
    except LoadError:
        return
    assert sum(tensor.nbytes for tensor in tensors) == len(data)
