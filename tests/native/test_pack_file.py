"""Packed weights from a file: the same bits as packed ones, and a damaged file is not used."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.lifecycle import mapped_files, num_mappings
from support.native import KERNELS, KINDS, Kind, LittleModel, single
from windlass.native import NativeExecutor, PackFile
from windlass.program.builder import ProgramBuilder
from windlass.program.program import Program
from windlass.quantization import Format

IDENTITY = bytes(range(32))
PAGE = 4096
PIECE = 2 << 20
CHECKED_FROM = 16
"""Where the part of the header begins that its checksum covers."""


def executor_of(
    model: LittleModel, path: Path | None = None, identity: bytes = IDENTITY, kernels: str | None = None
) -> NativeExecutor:
    """An executor of packed weights, or of those in the file if it has them."""
    descriptor = None if path is None else os.open(path, os.O_RDONLY)
    try:
        return NativeExecutor(
            model.program(),
            model.weights(),
            num_pages=8,
            max_tokens=64,
            max_positions=128,
            num_threads=2,
            kernels=kernels,
            pack_file=None if descriptor is None else PackFile(descriptor, identity),
        )
    finally:
        if descriptor is not None:
            os.close(descriptor)


def write(model: LittleModel, path: Path) -> None:
    executor = executor_of(model)
    with path.open("wb") as file:
        executor.write_weights(file.fileno(), IDENTITY)
    executor.close()


def is_used(model: LittleModel, path: Path, identity: bytes = IDENTITY) -> bool:
    executor = executor_of(model, path, identity)
    used = executor.weights_mapped
    assert executor.run(single(range(20))).shape == (20, model.vocab)
    executor.close()
    return used


def test_weights_with_many_matrices(tmp_path: Path) -> None:
    b = ProgramBuilder(num_layers=1, num_kv_heads=1, head_dim=16, vocab_size=50)
    x = b.embed("embed", 32)
    b.write_kv(0, x.columns(0, 16), x.columns(16, 16))
    b.attention(x, 0, num_heads=2)
    shares = b.route(b.linear(x, "router", 6), top_k=2, scores="softmax", normalize=True)
    b.hidden_states(b.experts(x, shares, gate_up="gate_up", down="down", intermediate_size=16))
    program, rng = b.build(), np.random.default_rng(2)
    weights = {spec.name: KINDS[7].tensor(rng, *spec.shape) for spec in program.weights}
    sizes = {"num_pages": 4, "max_tokens": 60, "max_positions": 64}
    packed = NativeExecutor(program, weights, **sizes)
    with (tmp_path / "weights").open("w+b") as file:
        packed.write_weights(file.fileno(), IDENTITY)
        mapped = NativeExecutor(program, {}, **sizes, pack_file=PackFile(file.fileno(), IDENTITY))
    assert mapped.weights_mapped
    np.testing.assert_array_equal(mapped.run(single(range(50))), packed.run(single(range(50))))
    mapped.close()
    packed.close()


@pytest.fixture(scope="module")
def model() -> LittleModel:
    return LittleModel(kind=KINDS[6])


@pytest.fixture(scope="module")
def original(model: LittleModel, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("pack") / "weights"
    write(model, path)
    return path.read_bytes()


@pytest.fixture
def path(original: bytes, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "weights"
    path.write_bytes(original)
    yield path
    assert str(path) not in mapped_files()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("kernels", KERNELS)
def test_mapped_weights_give_the_bits_of_packed_ones(kind: Kind, kernels: str, tmp_path: Path) -> None:
    model = LittleModel(kind=kind)
    write(model, tmp_path / "weights")
    packed, mapped = executor_of(model, kernels=kernels), executor_of(model, tmp_path / "weights", kernels=kernels)
    assert (packed.weights_mapped, mapped.weights_mapped) == (False, True)
    assert packed.weight_bytes == mapped.weight_bytes
    np.testing.assert_array_equal(packed.run(single(range(50))), mapped.run(single(range(50))))
    packed.close()
    mapped.close()


def test_mapped_weights_can_be_written_again(model: LittleModel, path: Path, original: bytes, tmp_path: Path) -> None:
    executor = executor_of(model, path)
    steps = []
    with (tmp_path / "copy").open("wb") as file:
        executor.write_weights(file.fileno(), IDENTITY, progress=lambda *step: steps.append(step))
    executor.close()
    assert (tmp_path / "copy").read_bytes() == original
    assert steps == [(1, 1)]


def test_a_large_file_is_written_in_pieces(tmp_path: Path) -> None:
    model = LittleModel(kind=KINDS[1], vocab=40_000)  # the embedding takes more than two pieces
    packed, steps = executor_of(model), []
    with (tmp_path / "weights").open("wb") as file:
        packed.write_weights(file.fileno(), IDENTITY, progress=lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert 2 * PIECE < (tmp_path / "weights").stat().st_size <= 3 * PIECE
    mapped = executor_of(model, tmp_path / "weights")
    assert mapped.weights_mapped
    np.testing.assert_array_equal(packed.run(single(range(50))), mapped.run(single(range(50))))
    packed.close()
    mapped.close()


def test_the_file_may_vanish_while_it_is_mapped(model: LittleModel, path: Path) -> None:
    executor = executor_of(model, path)
    expected = executor.run(single(range(50)))
    path.unlink()
    np.testing.assert_array_equal(executor.run(single(range(50))), expected)
    executor.close()
    path.write_bytes(b"")


def test_close_unmaps_the_file(model: LittleModel, path: Path) -> None:
    executor_of(model, path).close()
    before = num_mappings()
    executor = executor_of(model, path)
    assert str(path) in mapped_files()
    executor.close()
    assert str(path) not in mapped_files()
    assert num_mappings() <= before + 2
    with pytest.raises(RuntimeError, match="closed"):
        executor.write_weights(0, IDENTITY)


def test_other_weights_are_not_used(model: LittleModel, path: Path) -> None:
    assert is_used(model, path)
    assert not is_used(model, path, identity=bytes(32))
    assert not is_used(LittleModel(kind=KINDS[6], layers=1), path)
    assert not is_used(LittleModel(kind=KINDS[6], vocab=102), path)
    assert not is_used(LittleModel(kind=KINDS[6], ffn=96), path)


def test_a_part_of_a_file_is_not_used(model: LittleModel, path: Path, original: bytes) -> None:
    for size in (0, 1, 71, 72, 1000, PAGE, 2 * PAGE, len(original) // 2, len(original) - PAGE, len(original) - 1):
        path.write_bytes(original[:size])
        assert not is_used(model, path), size
    path.write_bytes(original + b"\0")
    assert not is_used(model, path)


def test_a_file_without_its_header_is_not_used(model: LittleModel, path: Path, original: bytes) -> None:
    path.write_bytes(bytes(PAGE) + original[PAGE:])
    assert not is_used(model, path)


def header_bytes(program: Program) -> int:
    return -(-(72 + 48 * len(program.weights)) // PAGE) * PAGE


def test_a_flipped_bit_of_the_header_is_noticed(model: LittleModel, path: Path, original: bytes) -> None:
    end = 72 + 48 * len(model.program().weights)
    for position in [*range(72), *range(72, end, 7), header_bytes(model.program()) - 1]:
        damaged = bytearray(original)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert not is_used(model, path), position


def checksum(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for (word,) in struct.iter_unpack("<Q", data):
        value = (value ^ word) * 0x100000001B3 % (1 << 64)
        value ^= value >> 32
    return value


@pytest.mark.parametrize(
    "field", range(9), ids=["format", "scales", "vector", "zeros", "minima", "ordered", "rows", "columns", "group"]
)
@pytest.mark.parametrize("value", [-(1 << 31), -1, 0, 1, 3, 5, 33, (1 << 31) - 1, 1 << 40, (1 << 63) - 1, -(1 << 63)])
def test_a_header_that_lies_is_not_believed(
    model: LittleModel, path: Path, original: bytes, field: int, value: int
) -> None:
    """With a checksum that is right: nothing is mapped beyond the file, whatever the header says."""
    size = header_bytes(model.program())
    entries = [struct.unpack_from("<6i3q", original, 72 + 48 * i) for i in range(len(model.program().weights))]
    if field < 6:  # of 32 bits
        value = (value + (1 << 31)) % (1 << 32) - (1 << 31)
    for index in (0, 3, len(entries) - 1):
        entry = list(entries[index])
        if entry[field] == value:
            continue
        entry[field] = value
        header = bytearray(original[:size])
        struct.pack_into("<6i3q", header, 72 + 48 * index, *entry)
        struct.pack_into("<Q", header, 8, checksum(bytes(header[CHECKED_FROM:])))
        path.write_bytes(bytes(header) + original[size:])
        used = is_used(model, path)
        # Another group or other scales, or zero points, minima or an order where there were none, may fit into the
        # same pages.
        assert not used or field in (1, 3, 4, 5, 8) or (field == 2 and entries[index][2]), (index, entry)


def test_an_order_of_columns_that_are_not_there_is_not_followed(tmp_path: Path) -> None:
    """The numbers of a file are not checked, but for those that say where to read."""
    model = LittleModel(kind=Kind(Format.INT8, 32, ordered=True))
    write(model, tmp_path / "weights")
    original = (tmp_path / "weights").read_bytes()
    assert is_used(model, tmp_path / "weights")
    order = model.weights()["embed.weight"].order
    assert order is not None
    at = original.index(order.tobytes())
    for column in (-1, model.hidden, 1 << 30):
        damaged = bytearray(original)
        struct.pack_into("<i", damaged, at + 4 * 7, column)
        (tmp_path / "weights").write_bytes(damaged)
        assert not is_used(model, tmp_path / "weights"), column


def test_the_checksum_of_these_tests_is_the_one_of_the_file(model: LittleModel, original: bytes) -> None:
    (stored,) = struct.unpack_from("<Q", original, 8)
    assert stored == checksum(original[CHECKED_FROM : header_bytes(model.program())])


def test_another_layout_is_not_used(model: LittleModel, path: Path, original: bytes) -> None:
    size = header_bytes(model.program())
    header = bytearray(original[:size])
    header[16] ^= 1  # the fingerprint of the packing
    struct.pack_into("<Q", header, 8, checksum(bytes(header[CHECKED_FROM:])))
    path.write_bytes(bytes(header) + original[size:])
    assert not is_used(model, path)


def test_a_full_disk_is_an_error(model: LittleModel) -> None:
    executor = executor_of(model)
    with Path("/dev/full").open("wb") as file, pytest.raises(OSError, match="No space left"):
        executor.write_weights(file.fileno(), IDENTITY)
    assert np.isfinite(executor.run(single(range(20)))).all()
    executor.close()


def test_the_arguments_are_checked(model: LittleModel, path: Path) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        executor_of(model, path, identity=b"short")
    executor = executor_of(model, path)
    with pytest.raises(ValueError, match="no piece 1"):
        executor._core.write_piece(0, 1)
    with pytest.raises(ValueError, match="there already"):
        executor._core.map_weights(0, IDENTITY)
    executor.close()
