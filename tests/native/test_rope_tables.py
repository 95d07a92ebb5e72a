"""Rotary tables that the native core makes from frequencies: those that numpy makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.native import f32_tensor, single
from windlass.models.rope import DefaultRope, Llama3Rope, PairFactorRope
from windlass.native import NativeExecutor
from windlass.program.builder import ProgramBuilder
from windlass.program.program import FrequencyTable, RopeTable

POSITIONS = 3000


@dataclass(frozen=True)
class Tabulated:
    """A table that does not tell its frequencies."""

    table: RopeTable

    def cos_sin(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.table.cos_sin(positions)


def rotated(table: RopeTable) -> Any:
    """What the table makes of one and the same row at each of many positions."""
    b = ProgramBuilder(num_layers=1, num_kv_heads=1, head_dim=16, vocab_size=4)
    x = b.embed("embed", 32)
    b.rope(x, b.rope_table(table))
    b.write_kv(0, x.columns(0, 16), x.columns(16, 16))
    b.attention(x, 0, num_heads=2)
    b.hidden_states(x)
    embed = f32_tensor(np.random.default_rng(1).standard_normal((4, 32), dtype=np.float32))
    executor = NativeExecutor(
        b.build(), {"embed.weight": embed}, num_pages=200, max_tokens=POSITIONS, max_positions=POSITIONS, num_threads=2
    )
    rows = executor.run(single([2] * POSITIONS))
    executor.close()
    return rows


@pytest.mark.parametrize(
    "table",
    [
        DefaultRope(1e6, 16),
        DefaultRope(1e4, 16, 4.0),
        PairFactorRope(1e4, 16, (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5)),
        Llama3Rope(500000.0, 16, 8.0, 1.0, 4.0, 256),
    ],
    ids=str,
)
def test_tables_are_those_of_numpy(table: FrequencyTable) -> None:
    native, expected = rotated(table), rotated(Tabulated(table))
    assert not np.array_equal(expected[0], expected[-1])
    # A cosine or sine of a billion may be rounded to the other side.
    np.testing.assert_allclose(native, expected, rtol=0, atol=1e-6)


def test_frequencies_are_rounded_as_numpy_does_it() -> None:
    for theta, dim in ((1e4, 128), (1e6, 64), (500000.0, 96)):
        exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        expected = np.float32(1) / np.power(theta, exponents.astype(np.float64)).astype(np.float32)
        np.testing.assert_array_equal(np.array(DefaultRope(theta, dim).frequencies(), dtype=np.float32), expected)


def test_a_factor_that_is_nothing_in_float32_makes_infinities() -> None:
    assert DefaultRope(1e4, 4, 1e-60).frequencies() == [np.inf, np.inf]
