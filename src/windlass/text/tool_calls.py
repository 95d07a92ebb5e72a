"""One tool call as Hermes and Qwen models write it: ``{"name": "f", "arguments": {...}}``, in either order."""

from __future__ import annotations

import enum
import json
import re

from windlass.text.json_scanner import JsonScanner

TOOL_CALL = "<tool_call>"
"""The marker before a call."""

TOOL_CALL_END = "</tool_call>"
"""The marker after it."""

_SPACE = re.compile(r"[ \t\n\r]*")


class _Expect(enum.Enum):
    """What the call goes on with."""

    OPEN = enum.auto()
    KEY = enum.auto()
    COLON = enum.auto()
    NAME = enum.auto()
    ARGUMENTS = enum.auto()
    NEXT = enum.auto()


_BEGINS = {
    _Expect.OPEN: "{",
    _Expect.KEY: '"',
    _Expect.COLON: ":",
    _Expect.NAME: '"',
    _Expect.ARGUMENTS: "{",
    _Expect.NEXT: ",}",
}


class ToolCallScanner:
    """Reads one call in pieces, strictly: exactly the two keys, a name that is not empty, arguments that are an object.

    Attributes:
        name: the tool's name, once it was read.
        done: the call is complete.
        failed: the next character cannot continue it.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.done = False
        self.failed = False
        self._expect = _Expect.OPEN
        self._value: JsonScanner | None = None
        self._held: list[str] = []
        self._arguments: list[str] | None = None

    @property
    def started(self) -> bool:
        """Which tool is called is known, and the arguments have begun."""
        return self.name is not None and self._arguments is not None

    def take_arguments(self) -> str:
        """The text of the arguments that was read since the last time."""
        taken = "".join(self._arguments or ())
        if self._arguments:
            self._arguments = []
        return taken

    def scan(self, text: str, start: int) -> int:
        """Read ``text`` from ``start`` on; return where the call ends, or fails, or the text ends."""
        position = start
        while position < len(text) and not self.done and not self.failed:
            if self._value is not None:
                position = self._read_value(self._value, text, position)
            else:
                match = _SPACE.match(text, position)
                position = match.end() if match else position
                if position < len(text):
                    position = self._read_mark(text, position)
        return position

    def _read_mark(self, text: str, at: int) -> int:
        char = text[at]
        expect = self._expect
        if char not in _BEGINS[expect] or (char == "}" and not self.started):
            self.failed = True
            return at
        if expect in (_Expect.KEY, _Expect.NAME, _Expect.ARGUMENTS):
            self._value = JsonScanner()
            if expect is _Expect.ARGUMENTS:
                self._arguments = []
            return at
        if expect is _Expect.COLON:
            self._expect = _Expect.NAME if self._held == ["name"] else _Expect.ARGUMENTS
            self._held = []
        elif char == "}":
            self.done = True
        else:
            self._expect = _Expect.KEY
        return at + 1

    def _read_value(self, value: JsonScanner, text: str, start: int) -> int:
        position = value.scan(text, start)
        part = text[start:position]
        if self._expect is _Expect.ARGUMENTS and self._arguments is not None:
            self._arguments.append(part)
        else:
            self._held.append(part)
        self.failed = value.failed
        if value.done:
            self._value = None
            self._end_value()
        return position

    def _end_value(self) -> None:
        if self._expect is _Expect.ARGUMENTS:
            self._expect = _Expect.NEXT
            return
        string: str = json.loads("".join(self._held))
        if self._expect is _Expect.NAME:
            self._held = []
            self._expect = _Expect.NEXT
            self.name = string
            self.failed = not string or not _is_unicode(string)
        else:
            self._held = [string]
            self._expect = _Expect.COLON
            known = {"name": self.name is None, "arguments": self._arguments is None}
            self.failed = not known.get(string, False)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # an escape gave half of a surrogate pair
        return False
    return True
