"""SentencePiece's normalization rules (``precompiled_charsmap``): which texts become which others.

The rules are a double-array trie (Aoe, 1989) over the UTF-8 of what is replaced, in the layout of Darts-clone, and
the replacements behind it, each ended by a zero. At every place the longest rule counts.
"""

from __future__ import annotations

import re
import sys
from array import array

_VALUE = (1 << 31) - 1
_LABEL = 1 << 31 | 0xFF
_LEAF = 1 << 8
_PRINTABLE = range(0x20, 0x7F)


class Charsmap:
    """The rules, ready to apply. Immutable, safe to use from many threads.

    Args:
        blob: as the model file has it; what nobody vouches for.

    Raises:
        ValueError: it is damaged.
    """

    def __init__(self, blob: bytes) -> None:
        size = int.from_bytes(blob[:4], "little")
        if len(blob) < 5 or not 0 < size < len(blob) - 4 or size % 4:
            raise ValueError("precompiled_charsmap is cut off")
        self._units = array("I", blob[4 : 4 + size])
        if sys.byteorder == "big":
            self._units.byteswap()
        self._texts = blob[4 + size :]
        if self._texts[-1]:
            raise ValueError("the last replacement of precompiled_charsmap has no end")
        if any(unit >> 31 and unit & _VALUE >= len(self._texts) for unit in self._units):
            raise ValueError("a rule of precompiled_charsmap has no replacement")
        plain = "".join(chr(byte) for byte in _PRINTABLE if self._is_plain(byte))
        # Characters of ASCII that no rule begins with, unless something beyond ASCII follows.
        self._plain = re.compile(f"[{re.escape(plain)}]+(?![^\\x00-\\x7f])" if plain else r"(?!)")

    def apply(self, text: str) -> str:
        """The text with all rules applied, from the left.

        Raises:
            UnicodeEncodeError: it holds a lone surrogate.
        """
        parts = []
        at = 0
        while at < len(text):
            plain = self._plain.match(text, at)
            if plain:
                parts.append(plain[0])
                at = plain.end()
                continue
            length, replacement = self._longest(text, at)
            parts.append(replacement if length else text[at])
            at += length or 1
        return "".join(parts)

    def _is_plain(self, byte: int) -> bool:
        """Whether rules that begin with a character of ASCII have another of ASCII, or nothing, behind it."""
        node = self._next(self._offset(0), byte)
        if node is None:
            return True
        base = node ^ self._offset(node)
        return not self._units[node] & _LEAF and all(self._next(base, other) is None for other in range(1, 128))

    def _longest(self, text: str, start: int) -> tuple[int, str]:
        """The length of the longest rule at ``start``, 0 when there is none, and what it makes of that."""
        base = self._offset(0)
        length, value = 0, 0
        for at in range(start, len(text)):
            unit = 0
            for byte in text[at].encode():
                node = self._next(base, byte)
                if node is None:
                    return length, self._replacement(value) if length else ""
                unit = self._units[node]
                base = node ^ self._offset(node)
            if unit & _LEAF and base < len(self._units):
                length, value = at + 1 - start, self._units[base] & _VALUE
        return length, self._replacement(value) if length else ""

    def _replacement(self, value: int) -> str:
        return self._texts[value : self._texts.find(b"\0", value)].decode(errors="replace")

    def _offset(self, node: int) -> int:
        unit = self._units[node]
        return unit >> 10 << ((unit & 1 << 9) >> 6)

    def _next(self, base: int, byte: int) -> int | None:
        """The node behind ``byte``, or None."""
        node = base ^ byte
        return node if node < len(self._units) and self._units[node] & _LABEL == byte else None
