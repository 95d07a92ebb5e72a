"""Every rule of ``Batch`` is checked, and the message names what broke it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from windlass.program.executor import Batch, check_batch

GOOD = {
    "token_ids": [1, 2, 3, 4],
    "positions": [15, 16, 17, 0],
    "token_starts": [0, 3, 4],
    "page_ids": [7, 5, 0],
    "page_starts": [0, 2, 3],
    "logit_rows": [3, 2],
}


def check(**changes: Any) -> None:
    arrays = {name: np.asarray(value, dtype=np.int32) for name, value in {**GOOD, **changes}.items()}
    check_batch(Batch(**arrays), vocab_size=10, num_pages=8, max_tokens=5, max_positions=18)


def test_a_good_batch() -> None:
    check()
    check(logit_rows=[])
    check(logit_rows=[0, 0])
    check(page_ids=[7, 5, 0, 1], page_starts=[0, 2, 4])


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("0 tokens", {"token_ids": [], "positions": []}),
        ("6 tokens", {"token_ids": [1] * 6, "positions": range(6)}),
        ("3 positions", {"positions": [15, 16, 17]}),
        ("token_ids", {"token_ids": [1, 2, 3, 10]}),
        ("token_ids", {"token_ids": [1, 2, 3, -1]}),
        ("positions", {"positions": [16, 17, 18, 0]}),
        ("positions", {"positions": [15, 16, 17, -1]}),
        ("page_ids", {"page_ids": [7, 8, 0]}),
        ("page_ids", {"page_ids": [7, -1, 0]}),
        ("logit_rows", {"logit_rows": [4]}),
        ("logit_rows", {"logit_rows": [-1]}),
        ("token_starts", {"token_starts": [0, 3]}),
        ("token_starts", {"token_starts": [1, 3, 4]}),
        ("token_starts", {"token_starts": [0, 5, 4]}),
        ("token_starts", {"token_starts": [0, 4, 4]}),
        ("token_starts", {"token_starts": []}),
        ("page_starts", {"page_starts": [0, 2, 4]}),
        ("page_starts", {"page_starts": [0, 3, 3]}),
        ("different numbers", {"page_starts": [0, 1, 2, 3]}),
        ("consecutive", {"positions": [15, 17, 16, 0]}),
        ("consecutive", {"positions": [15, 15, 16, 0]}),
        ("do not reach", {"page_starts": [0, 1, 3]}),
        ("same slot", {"page_ids": [5, 7, 5], "positions": [0, 1, 2, 0]}),
    ],
)
def test_a_broken_rule_is_named(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        check(**changes)


def test_types_and_layouts() -> None:
    arrays = {name: np.asarray(value, dtype=np.int32) for name, value in GOOD.items()}
    limits = {"vocab_size": 10, "num_pages": 8, "max_tokens": 5, "max_positions": 18}
    for bad in (arrays["token_ids"].astype(np.int64), arrays["token_ids"][None], np.zeros(8, dtype=np.int32)[::2]):
        with pytest.raises(ValueError, match="contiguous int32"):
            check_batch(Batch(**{**arrays, "token_ids": bad}), **limits)
