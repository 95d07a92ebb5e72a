"""Byte-level BPE (Sennrich et al., 2016) from tables that are used as they lie in memory.

Reading a vocabulary of 150,000 tokens from JSON takes half a second, most of a start; these tables are made once
(packing.py), as the native core uses them.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

from windlass.native.bpe import TABLES, BpeEncoder

_ALIGNMENT = 8


class PackedBpe:
    """An ``Encoder`` over the tables that ``pack_bpe`` makes, which it borrows: the ids are those of the library."""

    def __init__(self, meta: Mapping[str, Any], sections: memoryview) -> None:
        """Use tables that nobody vouches for.

        Args:
            meta: the number of items of each table, ``counts``, and whether text is brought to form C, ``normalizes``.
            sections: the tables one after the other, in the order of ``windlass.native.bpe.TABLES`` and each padded to
                8 bytes, at an address that is a multiple of 8.

        Raises:
            KeyError, TypeError, ValueError: these are no such tables.
        """
        tables: dict[str, memoryview[Any]] = {}
        at = 0
        for name, code in TABLES.items():
            size = meta["counts"][name] * array(code).itemsize
            tables[name] = sections[at : at + size].cast(code)  # type: ignore[call-overload]
            if tables[name].nbytes != size:
                raise ValueError("the tables are cut off")
            at += padded(size)
        self._core = BpeEncoder(tables, normalizes=bool(meta["normalizes"]))
        self._starts, self._entries = tables["entry_starts"], tables["entries"]

    def entry(self, token_id: int) -> str | None:
        """See ``Encoder``."""
        if token_id >= len(self._starts) - 1:
            return None
        return str(self._entries[self._starts[token_id] : self._starts[token_id + 1]], "utf-8") or None

    def encode(self, text: str) -> list[int]:
        """See ``Encoder``."""
        return self._core.encode(text)


def padded(size: int) -> int:
    """The bytes that a table of ``size`` bytes takes."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
