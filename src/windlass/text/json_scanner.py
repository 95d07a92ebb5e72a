"""Recognising JSON in a stream of text, without waiting for its end."""

from __future__ import annotations

import re
from collections.abc import Callable

# Both match at every position and never backtrack.
_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')

_LITERALS = {"t": "true", "f": "false", "n": "null"}
_DIGITS = dict.fromkeys("0123456789", "")

# The number grammar as transitions: state -> character -> state. A number may end in the states of _NUMBER_ENDS.
_NUMBER: dict[str, dict[str, str]] = {
    "": {"-": "minus", "0": "zero", **dict.fromkeys("123456789", "integer")},
    "minus": {"0": "zero", **dict.fromkeys("123456789", "integer")},
    "zero": {".": "point", "e": "e", "E": "e"},
    "integer": {**dict.fromkeys(_DIGITS, "integer"), ".": "point", "e": "e", "E": "e"},
    "point": dict.fromkeys(_DIGITS, "fraction"),
    "fraction": {**dict.fromkeys(_DIGITS, "fraction"), "e": "e", "E": "e"},
    "e": {**dict.fromkeys(_DIGITS, "exponent"), "+": "sign", "-": "sign"},
    "sign": dict.fromkeys(_DIGITS, "exponent"),
    "exponent": dict.fromkeys(_DIGITS, "exponent"),
}
_NUMBER_ENDS = frozenset({"zero", "integer", "fraction", "exponent"})


class JsonScanner:
    """Finds the end of one JSON object or string (RFC 8259) that comes in pieces.

    Works in constant time per character, with memory for the brackets that are open, and without recursion. What it
    recognises, ``json.loads`` reads, but for values beyond Python's own limits.

    Attributes:
        done: the value is complete.
        failed: the next character cannot continue it.
    """

    def __init__(self) -> None:
        self.done = False
        self.failed = False
        self._step: _Step = JsonScanner._start
        self._open = bytearray()
        self._is_key = False
        self._rest = ""
        self._number = ""

    def scan(self, text: str, start: int) -> int:
        """Read ``text`` from ``start`` on; return where the value ends, or fails, or the text ends."""
        position = start
        while position < len(text) and not self.done and not self.failed:
            position = self._step(self, text, position)
        return position

    # Each step reads what it accepts from a position that exists, and sets the step that follows. Steps are kept as
    # plain functions: a bound method kept by its own object would be a reference cycle.

    def _start(self, text: str, at: int) -> int:
        return self._value(text, at) if text[at] in '{"' else self._fail(at)

    def _value(self, text: str, at: int) -> int:
        char = text[at]
        if char == '"':
            self._is_key = False
            self._step = JsonScanner._string
        elif char in "{[":
            self._open.append(ord(char))
            self._step = JsonScanner._first_key if char == "{" else JsonScanner._first_item
        elif char in _LITERALS:
            self._rest = _LITERALS[char][1:]
            self._step = JsonScanner._literal
        elif char in _NUMBER[""]:
            self._number = _NUMBER[""][char]
            self._step = JsonScanner._digits
        elif char in " \t\n\r":
            return _skip_space(text, at)
        else:
            return self._fail(at)
        return at + 1

    def _first_item(self, text: str, at: int) -> int:
        at = _skip_space(text, at)
        if at == len(text):
            return at
        if text[at] == "]":
            return self._close(at)
        return self._value(text, at)

    def _first_key(self, text: str, at: int) -> int:
        at = _skip_space(text, at)
        if at == len(text):
            return at
        return self._close(at) if text[at] == "}" else self._key(text, at)

    def _key(self, text: str, at: int) -> int:
        at = _skip_space(text, at)
        if at == len(text):
            return at
        self._is_key = True
        return self._expect(text, at, '"', JsonScanner._string)

    def _colon(self, text: str, at: int) -> int:
        at = _skip_space(text, at)
        return at if at == len(text) else self._expect(text, at, ":", JsonScanner._value)

    def _after_value(self, text: str, at: int) -> int:
        at = _skip_space(text, at)
        if at == len(text):
            return at
        in_object = self._open[-1] == ord("{")
        if text[at] == ("}" if in_object else "]"):
            return self._close(at)
        return self._expect(text, at, ",", JsonScanner._key if in_object else JsonScanner._value)

    def _string(self, text: str, at: int) -> int:
        match = _PLAIN.match(text, at)
        at = match.end() if match else at
        if at == len(text):
            return at
        if text[at] == "\\":
            self._step = JsonScanner._escape
        elif text[at] != '"':
            return self._fail(at)
        elif self._is_key:
            self._step = JsonScanner._colon
        else:
            self._end_value()
        return at + 1

    def _escape(self, text: str, at: int) -> int:
        if text[at] == "u":
            self._rest = "0000"
            self._step = JsonScanner._hex
        elif text[at] in '"\\/bfnrt':
            self._step = JsonScanner._string
        else:
            return self._fail(at)
        return at + 1

    def _hex(self, text: str, at: int) -> int:
        if text[at] not in "0123456789abcdefABCDEF":
            return self._fail(at)
        self._rest = self._rest[1:]
        if not self._rest:
            self._step = JsonScanner._string
        return at + 1

    def _literal(self, text: str, at: int) -> int:
        if text[at] != self._rest[0]:
            return self._fail(at)
        self._rest = self._rest[1:]
        if not self._rest:
            self._end_value()
        return at + 1

    def _digits(self, text: str, at: int) -> int:
        follows = _NUMBER[self._number].get(text[at])
        if follows is not None:
            self._number = follows
            return at + 1
        if self._number not in _NUMBER_ENDS:
            return self._fail(at)
        self._end_value()
        return at

    def _expect(self, text: str, at: int, char: str, follows: _Step) -> int:
        if text[at] != char:
            return self._fail(at)
        self._step = follows
        return at + 1

    def _close(self, at: int) -> int:
        self._open.pop()
        self._end_value()
        return at + 1

    def _end_value(self) -> None:
        self.done = not self._open
        self._step = JsonScanner._after_value

    def _fail(self, at: int) -> int:
        self.failed = True
        return at


_Step = Callable[[JsonScanner, str, int], int]


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
