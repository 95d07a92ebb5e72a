"""The native encoder checks the tables that it is given, and keeps them."""

from __future__ import annotations

import gc
import threading
from array import array
from typing import Any

import pytest

from windlass.native.bpe import TABLES, BpeEncoder

NO_ID = (1 << 32) - 1


def make_tables() -> dict[str, memoryview[Any]]:
    """Bytes for ids, of which ``ab`` join; words begin at each space (kind 1)."""
    kinds = bytearray(256)
    kinds[ord(" ")] = 1
    given: dict[str, Any] = {
        "letters": range(256),
        "unknown": [NO_ID],
        "spaces": [0],
        "pair_starts": [0] * 98 + [1] * 160,
        "pair_rights": [ord("b")],
        "pair_ranks": [0],
        "pair_joined": [256],
        "entry_starts": [*range(257), 258],
        "entries": bytes(256) + b"ab",
        "blocks": bytes(4352),
        "kinds": kinds,
        "sets": [1, 2],
        "combining": bytes(2),
        "normal": bytes(2),
        "part_starts": [0],
        "steps": [0, 1, 0, 1, 0, 0, 1, NO_ID],
        "alternatives": [0, 2],
        "patterns": [0, 1, 0],
        "added_starts": [0],
    }
    return {name: memoryview(array(code, given.get(name, ()))) for name, code in TABLES.items()}


def test_tables_outlive_whoever_gave_them() -> None:
    encoder = BpeEncoder(make_tables(), normalizes=True)
    gc.collect()
    assert encoder.encode("ab abb") == [256, ord(" "), 256, ord("b")]
    assert encoder.encode("") == []
    assert encoder.encode("\0é") == [0, *"é".encode()]


def test_words_may_be_made_of_characters() -> None:
    letters = array("I", [NO_ID]) * 256
    changes = {"letters": letters, "characters": array("I", [97, 98, 0x2581]), "character_ids": array("I", [97, 98, 5])}
    changes |= {"unknown": array("I", [7]), "spaces": array("I", [3]), "patterns": array("I")}
    encoder = BpeEncoder(make_tables() | {name: memoryview(one) for name, one in changes.items()}, normalizes=False)
    assert encoder.encode("ab éxa") == [5, 256, 5, 7, 97]
    for name, value in (
        ("spaces", [16]),
        ("spaces", []),
        ("unknown", [300]),
        ("unknown", [1, 2]),
        ("character_ids", [97]),
    ):
        wrong = changes | {name: array("I", value)}
        with pytest.raises(ValueError, match=r"unknown|cut off"):
            BpeEncoder(make_tables() | {one: memoryview(table) for one, table in wrong.items()}, normalizes=False)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_missing_or_of_another_type(name: str) -> None:
    tables = make_tables()
    wrong = memoryview(array("f", [1.0]))
    with pytest.raises(ValueError, match=name):
        BpeEncoder({**tables, name: wrong}, normalizes=False)
    with pytest.raises(ValueError, match=name):
        BpeEncoder({other: table for other, table in tables.items() if other != name}, normalizes=False)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("letters", [257] * 256),
        ("letters", range(255)),
        ("pair_starts", [0] * 98 + [2] * 160),
        ("pair_starts", []),
        ("pair_ranks", []),
        ("pair_joined", [257]),
        ("entry_starts", [*range(257), 259]),
        ("entry_starts", [1, *range(1, 257), 258]),
        ("whole_words", [257]),
        ("blocks", bytes([1]) * 4352),
        ("blocks", bytes(4351)),
        ("kinds", bytes([2]) * 256),
        ("combining", bytes(1)),
        ("part_starts", []),
        ("compositions", [1]),
        ("composed", [1]),
        ("steps", [4, 0, 1, 1]),
        ("steps", [0, 32, 1, 1]),
        ("steps", [0, 0, 1]),
        ("alternatives", [1, 2]),
        ("alternatives", [NO_ID, 1]),
        ("patterns", [0, 2, 0]),
        ("added_starts", [0, 1]),
        ("added_ids", [1]),
    ],
)
def test_tables_that_do_not_fit(name: str, values: Any) -> None:
    table = memoryview(array(TABLES[name], values))
    with pytest.raises(ValueError, match=r"table|step|alternative|pattern|block|kind|token|composition"):
        BpeEncoder({**make_tables(), name: table}, normalizes=False)


def test_other_threads_use_it_too() -> None:
    encoder = BpeEncoder(make_tables(), normalizes=False)
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(encoder.encode("ab " * 50_000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [found[0]] * 4
    assert len(found[0]) == 100_000
