"""MLC tensor tables and shards: reading, refusing, writing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.weight_files import open_in, write_mlc
from windlass.errors import LoadError
from windlass.quantization import SCHEMES, Format, bf16_to_f32, f32_to_bf16
from windlass.weights import MlcWriter, open_mlc
from windlass.weights import mlc as mlc_module

SCHEME = SCHEMES["q4f16_1"]
TENSORS: dict[str, Any] = {
    "norm": np.array([1.5, -2, 3], np.float16),  # six bytes: what follows is not aligned to four
    "words": np.arange(8, dtype=np.uint32).reshape(2, 4) * 0x01010101,
    "wide": np.array([[1.0, 1 + 2**-9, -3.25]], np.float32),
    "bf": np.array([0x3F80, 0xC040], np.uint16),
}


@pytest.mark.parametrize("table", ["tensor-cache.json", "ndarray-cache.json"])
def test_every_dtype_comes_back(tmp_path: Path, table: str) -> None:
    write_mlc(tmp_path, TENSORS, table=table)
    with open_mlc(tmp_path, SCHEME) as source:
        assert source.scheme is SCHEME
        assert source.path.name == table
        assert set(source.names) == set(TENSORS)
        assert [source.info(name).format for name in TENSORS] == [Format.F16, None, Format.F32, Format.BF16]
        words = source.read("words")
        assert words.flags.aligned
        assert words.dtype == np.uint32
        assert np.array_equal(words, TENSORS["words"])
        assert source.read("norm").tolist() == [1.5, -2, 3]
        assert source.read("bf").tolist() == [0x3F80, 0xC040]
        wide = source.read("wide")
        assert wide.dtype == np.float32
        assert wide.tolist() == [[1.0, 1.0, -3.25]]  # stored as bfloat16, widened
        del words, wide
    assert open_in(tmp_path) == (0, 0)


def test_float32_may_be_stored_raw(tmp_path: Path) -> None:
    raw = np.array([1 + 2**-20, 2], np.float32)
    table = write_mlc(tmp_path, {"x": raw.view(np.uint32)})
    table["records"][0]["records"][0].update(dtype="float32", format="raw")
    (tmp_path / "tensor-cache.json").write_text(json.dumps(table))
    with open_mlc(tmp_path, SCHEME) as source:
        assert source.read("x").tolist() == raw.tolist()


def test_the_newer_table_is_preferred(tmp_path: Path) -> None:
    write_mlc(tmp_path, {"old": TENSORS["norm"]}, table="ndarray-cache.json")
    write_mlc(tmp_path, {"new": TENSORS["norm"]})
    with open_mlc(tmp_path, SCHEME) as source:
        assert list(source.names) == ["new"]


def shard(**changes: Any) -> Any:
    return lambda table: table["records"][0].update(changes)


def tensor(index: int, **changes: Any) -> Any:
    return lambda table: table["records"][0]["records"][index].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.pop("records"), "there is no array records"),
        (lambda table: table["records"].append(3), "a shard record must be an object, not a number"),
        (lambda table: table["records"].append(table["records"][0]), "params_shard_0.bin is listed twice"),
        (shard(dataPath="../x.bin"), "'../x.bin' is not the name of a file"),
        (shard(dataPath=None), "None is not the name of a file"),
        (shard(dataPath="params_shard_7.bin"), "params_shard_7.bin: the file is missing; tensor-cache.json needs it"),
        (shard(format="zip"), "has format 'zip'; supported: 'raw-shard'"),
        (shard(nbytes=49), "params_shard_0.bin: the file has 48 bytes, tensor-cache.json says 49"),
        (shard(nbytes="48"), "the file has 48 bytes, tensor-cache.json says '48'"),
        (shard(records=None), "has no array records"),
        (shard(records=[1]), "a tensor record of params_shard_0.bin has no name"),
        (tensor(0, name=5), "has no name"),
        (tensor(0, name="words"), "'words' is listed twice|overlap"),
        (tensor(0, name="w_shard-0"), "split for tensor parallelism"),
        (tensor(0, dtype="int8"), "'norm' has dtype 'int8'; supported: float32, float16, bfloat16, uint32"),
        (tensor(0, dtype=["x"]), "'norm' has dtype"),
        (tensor(0, format="gzip"), "'norm' has format 'gzip'"),
        (tensor(0, shape=[4]), r"'norm': 6 bytes do not fit float16 \[4\]"),
        (tensor(0, shape=[-3]), "'norm' has no acceptable shape"),
        (tensor(1, byteOffset=4), "tensors 'norm' and 'words' overlap"),
        (tensor(3, byteOffset=46), "'bf' reaches outside the file"),
        (tensor(0, byteOffset=-2), "'norm' has no acceptable byteOffset and nbytes: -2, 6"),
        (tensor(0, nbytes=6.0), "no acceptable byteOffset and nbytes"),
        (tensor(2, dtype="bfloat16", shape=[2**40, 2**40]), "do not fit bfloat16"),
    ],
)
def test_bad_tables(tmp_path: Path, change: Any, message: str) -> None:
    table = write_mlc(tmp_path, TENSORS)
    change(table)
    (tmp_path / "tensor-cache.json").write_text(json.dumps(table))
    with pytest.raises(LoadError, match=message):
        open_mlc(tmp_path, SCHEME)


def test_a_name_in_two_shards(tmp_path: Path) -> None:
    table = write_mlc(tmp_path, {"x": TENSORS["norm"]})
    (tmp_path / "params_shard_1.bin").write_bytes((tmp_path / "params_shard_0.bin").read_bytes())
    table["records"].append({**table["records"][0], "dataPath": "params_shard_1.bin"})
    (tmp_path / "tensor-cache.json").write_text(json.dumps(table))
    with pytest.raises(LoadError, match="tensor 'x' is listed twice"):
        open_mlc(tmp_path, SCHEME)


def test_bad_json_and_missing_tables(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"neither tensor-cache\.json nor ndarray-cache\.json"):
        open_mlc(tmp_path, SCHEME)
    (tmp_path / "ndarray-cache.json").write_text('{"records": [\n  {"dataPath": }]}')
    with pytest.raises(LoadError, match=r"ndarray-cache\.json: .* at line 2 column 16"):
        open_mlc(tmp_path, SCHEME)


def test_a_truncated_shard(tmp_path: Path) -> None:
    write_mlc(tmp_path, TENSORS)
    file = tmp_path / "params_shard_0.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(LoadError, match=r"the file has 47 bytes, tensor-cache\.json says 48") as caught:
        open_mlc(tmp_path, SCHEME)
    assert caught.value.path == str(file)


def test_checksums_are_compared_when_asked(tmp_path: Path) -> None:
    writer = MlcWriter(tmp_path)
    writer.add("x", np.arange(4, dtype=np.float16), "float16")
    writer.finish(4)
    open_mlc(tmp_path, SCHEME, verify_md5=True).close()
    (tmp_path / "params_shard_0.bin").write_bytes(bytes(8))
    open_mlc(tmp_path, SCHEME).close()
    with pytest.raises(LoadError, match="checksum differs"):
        open_mlc(tmp_path, SCHEME, verify_md5=True)


def test_the_writer_by_hand(tmp_path: Path) -> None:
    writer = MlcWriter(tmp_path)
    writer.add("w.q_weight", np.array([[0x0403_0201, 0xA4A6_870E]], np.uint32), "uint32")
    writer.add("w.q_scale", np.array([[1.0]], np.float16), "float16")
    writer.add("n.weight", np.array([1.0, -2.0, 1 + 3 * 2**-8], np.float32), "float32")
    writer.add("b.weight", np.array([0x3F80], np.uint16), "bfloat16")
    writer.finish(16)
    data = bytes.fromhex("01020304 0e87a6a4 003c 803f 00c0 823f 803f")
    assert (tmp_path / "params_shard_0.bin").read_bytes() == data
    table = json.loads((tmp_path / "tensor-cache.json").read_text())
    # In memory float32 takes four bytes a number, whatever it takes on disk.
    assert table["metadata"] == {"ParamSize": 4, "ParamBytes": 24.0, "BitsPerParam": 12.0}
    label = "f32-to-bf16"
    assert table["records"] == [
        {
            "dataPath": "params_shard_0.bin",
            "format": "raw-shard",
            "nbytes": 18,
            "md5sum": hashlib.md5(data).hexdigest(),  # noqa: S324
            "records": [
                {
                    "name": "w.q_weight",
                    "shape": [1, 2],
                    "dtype": "uint32",
                    "format": label,
                    "nbytes": 8,
                    "byteOffset": 0,
                },
                {
                    "name": "w.q_scale",
                    "shape": [1, 1],
                    "dtype": "float16",
                    "format": label,
                    "nbytes": 2,
                    "byteOffset": 8,
                },
                {"name": "n.weight", "shape": [3], "dtype": "float32", "format": label, "nbytes": 6, "byteOffset": 10},
                {"name": "b.weight", "shape": [1], "dtype": "bfloat16", "format": label, "nbytes": 2, "byteOffset": 16},
            ],
        }
    ]


def test_the_writer_and_the_reader_agree(tmp_path: Path) -> None:
    writer = MlcWriter(tmp_path)
    names: dict[str, Any] = {"norm": "float16", "words": "uint32", "wide": "float32", "bf": "bfloat16"}
    for name, array in TENSORS.items():
        writer.add(name, array, names[name])
    writer.finish(1)
    with open_mlc(tmp_path, SCHEME, verify_md5=True) as source:
        for name, array in TENSORS.items():
            expected = bf16_to_f32(f32_to_bf16(array)) if array.dtype == np.float32 else array
            assert np.array_equal(source.read(name), expected)


def test_shards_fill_by_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlc_module, "_SHARD_BYTES", 32)
    writer = MlcWriter(tmp_path)
    for name, count in {"a": 4, "b": 6, "big": 8, "c": 3, "d": 4, "huge": 40}.items():
        writer.add(name, np.full(count, count, np.float16), "float16")
    writer.finish(65)
    records = json.loads((tmp_path / "tensor-cache.json").read_text())["records"]
    # big (16 bytes, half a shard) does not fit beside a and b and goes alone, while a and b wait for c;
    # d would make 34 bytes and opens a new shard; huge is larger than a shard.
    assert [[(item["name"], item["byteOffset"]) for item in record["records"]] for record in records] == [
        [("big", 0)],
        [("a", 0), ("b", 8), ("c", 20)],
        [("huge", 0)],
        [("d", 0)],
    ]
    assert [record["nbytes"] for record in records] == [16, 26, 80, 8]
    assert [record["dataPath"] for record in records] == [f"params_shard_{i}.bin" for i in range(4)]
    with open_mlc(tmp_path, SCHEME, verify_md5=True) as source:
        assert source.read("c").tolist() == [3, 3, 3]


def test_the_writer_refuses_what_bfloat16_cannot_hold(tmp_path: Path) -> None:
    writer = MlcWriter(tmp_path)
    with pytest.raises(ValueError, match="not finite or too large for bf16"):
        writer.add("x", np.array([np.inf], np.float32), "float32")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SMALL = st.integers(-2, 24) | JSON
RECORD = st.fixed_dictionaries(
    {"name": st.sampled_from("abc") | JSON, "format": st.sampled_from(["raw", "f32-to-bf16"])},
    optional={
        "dtype": st.sampled_from(["float32", "float16", "bfloat16", "uint32"]) | JSON,
        "shape": st.lists(st.integers(-1, 6), max_size=2) | JSON,
        "nbytes": SMALL,
        "byteOffset": SMALL,
    },
)
SHARD = st.fixed_dictionaries(
    {"format": st.just("raw-shard"), "records": st.lists(RECORD | JSON, max_size=3)},
    optional={"dataPath": st.just("s.bin") | st.text(max_size=3) | JSON, "nbytes": st.just(24) | JSON},
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.fixed_dictionaries({"records": st.lists(SHARD | JSON, max_size=2) | JSON}))
def test_any_json_for_a_table_is_refused_or_sound(tmp_path: Path, table: Any) -> None:
    (tmp_path / "s.bin").write_bytes(bytes(24))
    (tmp_path / "tensor-cache.json").write_text(json.dumps(table))
    try:
        source = open_mlc(tmp_path, SCHEME)
    except LoadError:
        return
    with source:
        for name in source.names:
            info = source.info(name)
            assert 0 <= info.offset <= info.offset + info.nbytes <= 24
            assert source.read(name).shape == info.shape
