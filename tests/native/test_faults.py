"""Whatever fails in the native core: an error says so, nothing is left behind, and what exists goes on working."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.faults import native_fault, require_native
from support.lifecycle import mapped_files, num_mappings, num_threads, resident_bytes, wait_for
from support.native import KINDS, LittleModel, single
from windlass.native import NativeExecutor, PackFile
from windlass.native.sampling import RowSampler, SamplingRow, SequenceSampler
from windlass.program.adapter import LowRank, linear_shapes

require_native()

ERRORS = {
    "mapping": MemoryError,
    "allocation": MemoryError,
    "thread": RuntimeError,
    "pack": RuntimeError,
    "operation": RuntimeError,
    "piece": RuntimeError,
}


def make(pack_file: PackFile | None = None, threads_of: NativeExecutor | None = None) -> NativeExecutor:
    model = LittleModel(kind=KINDS[6])
    return NativeExecutor(
        model.program(),
        model.weights(),
        num_pages=8,
        max_tokens=64,
        max_positions=128,
        num_threads=4,
        threads_of=threads_of,
        pack_file=pack_file,
    )


def every_fault(kind: str, action: Callable[[], object]) -> int:
    """Let the 1st, 2nd, ... point of ``kind`` fail during ``action`` until none does; return how many did."""
    for turn in itertools.count(1):
        with native_fault(kind, turn) as fired:
            try:
                action()
            except ERRORS[kind]:
                assert fired()
            else:
                assert not fired(), "the fault was swallowed"
                return turn - 1
    raise AssertionError


@pytest.mark.parametrize(("kind", "at_least"), [("mapping", 15), ("allocation", 10), ("thread", 3), ("pack", 15)])
def test_a_construction_that_fails_leaves_nothing(kind: str, at_least: int) -> None:
    make().close()
    threads, mappings = num_threads(), num_mappings()
    before = resident_bytes()

    assert every_fault(kind, lambda: make().close()) >= at_least
    assert wait_for(lambda: num_threads() == threads)
    # The C library keeps a heap per thread, and the stacks of some threads.
    assert num_mappings() <= mappings + 8
    assert resident_bytes() - before < 4 << 20


@pytest.mark.parametrize(("kind", "at_least"), [("mapping", 5), ("allocation", 10), ("thread", 3)])
def test_a_construction_from_a_file_that_fails_leaves_nothing(kind: str, at_least: int, tmp_path: Path) -> None:
    first = make()
    with (tmp_path / "weights").open("wb") as file:
        first.write_weights(file.fileno(), bytes(32))
    first.close()
    descriptor = os.open(tmp_path / "weights", os.O_RDONLY)
    threads, mappings, before = num_threads(), num_mappings(), resident_bytes()

    def construct() -> None:
        executor = make(PackFile(descriptor, bytes(32)))
        assert executor.weights_mapped
        executor.close()

    assert every_fault(kind, construct) >= at_least
    assert str(tmp_path / "weights") not in mapped_files()
    assert wait_for(lambda: num_threads() == threads)
    assert num_mappings() <= mappings + 8
    assert resident_bytes() - before < 4 << 20
    os.close(descriptor)


@pytest.mark.parametrize(("kind", "at_least"), [("mapping", 15), ("allocation", 10), ("pack", 15)])
def test_a_construction_on_shared_threads_that_fails_leaves_nothing(kind: str, at_least: int) -> None:
    owner = make()
    threads, mappings, before = num_threads(), num_mappings(), resident_bytes()

    def construct() -> None:
        executor = make(threads_of=owner)
        assert num_threads() == threads
        executor.close()

    assert every_fault(kind, construct) >= at_least
    assert num_threads() == threads
    assert num_mappings() <= mappings + 8
    assert resident_bytes() - before < 4 << 20
    assert owner.run(single([1])).shape[0] == 1
    owner.close()


def test_writing_that_runs_out_of_memory_can_be_repeated(tmp_path: Path) -> None:
    executor = make()

    def write() -> None:
        with (tmp_path / "weights").open("wb") as file:
            executor.write_weights(file.fileno(), bytes(32))

    assert every_fault("allocation", write) >= 5
    executor.close()


@pytest.mark.parametrize(("kind", "at_least"), [("operation", 20), ("piece", 40), ("allocation", 0), ("mapping", 0)])
def test_a_step_that_fails_can_be_run_again(kind: str, at_least: int) -> None:
    executor = make()
    expected = executor.run(single(range(50)))

    def step() -> None:
        np.testing.assert_array_equal(executor.run(single(range(50))), expected)

    assert every_fault(kind, step) >= at_least
    step()
    executor.close()


@pytest.mark.parametrize(("kind", "at_least"), [("mapping", 10), ("allocation", 5), ("pack", 10)])
def test_an_adapter_that_fails_leaves_nothing(kind: str, at_least: int) -> None:
    executor = make()
    rng = np.random.default_rng(1)
    updates = [
        (name, [LowRank(0, KINDS[0].tensor(rng, 4, columns), KINDS[0].tensor(rng, rows, 4), 1.0)])
        for name, (rows, columns) in linear_shapes(LittleModel().program()).items()
    ]
    batch = dataclasses.replace(single(range(50)), adapters=(executor.pack_adapter(updates),))
    expected = executor.run(batch)
    mappings = num_mappings()

    def pack() -> None:
        adapter = executor.pack_adapter(updates)
        np.testing.assert_array_equal(executor.run(dataclasses.replace(batch, adapters=(adapter,))), expected)
        adapter.close()

    assert every_fault(kind, pack) >= at_least
    assert num_mappings() <= mappings + 2
    executor.close()


def test_a_draw_that_fails_can_be_drawn_again() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (3, 5000)).astype(np.float32)

    def draw() -> list[int]:
        sampler = RowSampler(5000)
        rows = []
        for parameters in ({"top_p": 0.9}, {"top_k": 20, "min_p": 0.01}, {"logit_bias": ((3, 1.0),)}):
            sequence = SequenceSampler(**parameters, presence_penalty=0.5, repetition_penalty=1.1)
            sequence.follow([1, 2, 3, 4], 2)
            rows.append(SamplingRow(sequence, 4, 5))
        try:
            drawn = sampler.sample_rows(logits, rows)
        except MemoryError:
            assert [token.token_id for token in sampler.sample_rows(logits, rows)] == expected
            raise
        return [token.token_id for token in drawn]

    expected = draw()
    assert every_fault("allocation", draw) >= 10


def test_a_fault_fires_once_and_only_when_armed() -> None:
    with native_fault("mapping", 1) as fired:
        with pytest.raises(MemoryError):
            make()
        assert fired()
        make().close()
    with native_fault("operation", 1) as fired:
        make().close()
        assert not fired()
    make().close()
