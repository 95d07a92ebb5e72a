"""Text to token ids in C++."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windlass.native import _core

TABLES: Mapping[str, str] = {
    "letters": "I",
    "characters": "I",
    "character_ids": "I",
    "unknown": "I",
    "spaces": "I",
    "pair_starts": "I",
    "pair_rights": "I",
    "pair_ranks": "I",
    "pair_joined": "I",
    "entry_starts": "I",
    "entries": "B",
    "whole_words": "I",
    "blocks": "B",
    "kinds": "B",
    "sets": "I",
    "combining": "B",
    "normal": "B",
    "decomposing": "I",
    "part_starts": "I",
    "parts": "I",
    "compositions": "Q",
    "composed": "I",
    "steps": "I",
    "alternatives": "I",
    "patterns": "I",
    "added": "B",
    "added_starts": "I",
    "added_ids": "I",
    "added_normal": "B",
}
"""The tables of an encoder and the types of their numbers, as ``array`` names them; csrc/text says what they mean."""


class BpeEncoder:
    """Encodes with the tables of one vocabulary, which it borrows. Safe to use from many threads."""

    def __init__(self, tables: Mapping[str, memoryview[Any]], *, normalizes: bool) -> None:
        """Check the tables, so that no text can lead out of them.

        Args:
            tables: all of ``TABLES``, each one-dimensional, aligned, and of its type.
            normalizes: text is brought to Unicode's form C first.

        Raises:
            ValueError: a table is missing, has another type, or does not fit the others.
        """
        self._core = _core.BpeEncoder(dict(tables), normalizes=normalizes)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; the GIL is released meanwhile. O(n log n), whatever the text.

        Raises:
            TypeError: the text holds a lone surrogate.
            ValueError: it is longer than 2 GiB in UTF-8.
            MemoryError: there is not enough memory.
        """
        return self._core.encode(text)
