"""Pooling: the formula, and that it does not matter how a text is cut."""

from __future__ import annotations

import numpy as np
import pytest

from windlass.program.pooling import Pooling, normalized

STATES = np.random.default_rng(3).standard_normal((23, 5), dtype=np.float32)


def embed(pooling: Pooling, *ends: int) -> np.ndarray:
    """The embedding of ``STATES`` in pieces that end at ``ends``."""
    pooled, begin = None, 0
    for end in (*ends, len(STATES)):
        rows = pooling.num_rows(end - begin, completes=end == len(STATES))
        pooled = pooling.add(pooled, STATES[end - rows : end])
        begin = end
    assert pooled is not None
    return pooling.finish(pooled, len(STATES))


@pytest.mark.parametrize(
    ("kind", "expected"), [("last", STATES[-1]), ("cls", STATES[0]), ("mean", STATES.mean(axis=0, dtype=np.float64))]
)
@pytest.mark.parametrize("ends", [(), (1,), (7, 8, 22), tuple(range(1, 23))])
def test_any_cut_gives_the_same_bits(kind: str, expected: np.ndarray, ends: tuple[int, ...]) -> None:
    pooling = Pooling(kind, normalize=False)  # type: ignore[arg-type]
    assert embed(pooling, *ends) == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(embed(pooling, *ends), embed(pooling))
    unit = embed(Pooling(kind, normalize=True), *ends)  # type: ignore[arg-type]
    assert unit == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)


def test_only_what_is_needed_is_asked_for() -> None:
    assert [Pooling("last", normalize=True).num_rows(9, completes=done) for done in (False, True)] == [0, 1]
    assert Pooling("mean", normalize=True).num_rows(9, completes=False) == 9


def test_bad_numbers_are_no_embedding() -> None:
    with pytest.raises(FloatingPointError):
        Pooling("last", normalize=True).finish(np.array([1, np.nan], dtype=np.float32), 3)
    assert np.array_equal(normalized(np.zeros(3, dtype=np.float32)), np.zeros(3))
