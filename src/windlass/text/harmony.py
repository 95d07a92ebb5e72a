"""Answers in OpenAI's harmony format (gpt-oss): messages on channels, from the text and the marks between its parts.

The marks are special tokens, which otherwise give no text; for these models each comes as one noncharacter of Unicode,
so that nothing that a model writes in plain text can be taken for one.
"""

from __future__ import annotations

import enum
import re
import secrets
from collections.abc import Iterable

from windlass.text.answer_events import (
    AnswerEvent,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallBroken,
    ToolCallEnded,
    ToolCallStarted,
)
from windlass.text.json_scanner import JsonScanner

START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN = map(chr, range(0xFDD8, 0xFDDF))
MARKS = {
    "<|start|>": START,
    "<|channel|>": CHANNEL,
    "<|constrain|>": CONSTRAIN,
    "<|message|>": MESSAGE,
    "<|end|>": END,
    "<|call|>": CALL,
    "<|return|>": RETURN,
}
"""Special tokens, and what stands for them in the text."""

ENDS = ("<|call|>", "<|return|>")
"""The special tokens that end an answer."""

_MARK = re.compile(f"[{START}-{RETURN}]")
_RECIPIENT = re.compile(r"(?:^|\s)to=(\S+)")
_FUNCTIONS = "functions."
_SPACE = " \t\r\n"
_MOST_HEADER = 256
"""Characters of a header; a text that goes on longer without a mark is none."""


class _Mode(enum.Enum):
    """What the text now read is."""

    HEADER = enum.auto()
    CONTENT = enum.auto()
    REASONING = enum.auto()
    CALL = enum.auto()
    BETWEEN = enum.auto()


class HarmonyParser:
    """Takes the text of an answer apart while it comes; the face of ``AnswerParser``.

    The answer begins in the header of its first message, since the prompt ends with ``<|start|>assistant``. A message
    on the channel "analysis" is reasoning, and so is one to another recipient than a function (a built-in tool, which
    no request has); one to ``functions.<name>`` is a call of that tool; all else is content, also what breaks the
    format. Messages of a kind that follow each other are parted by a newline. A call whose arguments turn out
    malformed is content if it was not passed on yet; otherwise it is reported as broken, and the rest is content.
    Time is linear in the text. Not thread-safe: one per stream.

    Args:
        tools: the request has tools that may be called; without it calls are content.
        parallel_tool_calls: without it, complete calls after the first that began are dropped.
    """

    def __init__(self, *, tools: bool, parallel_tool_calls: bool = True) -> None:
        self._tools = tools
        self._max_calls = None if parallel_tool_calls else 1
        self._mode = _Mode.HEADER
        self._header = ""
        self._name = ""
        self._source: list[str] = []
        self._scanner = JsonScanner()
        self._call_begun = self._passes_on = False
        self._num_calls = 0
        self._has: set[_Mode] = set()
        self._parts_from_last = False
        self._events: list[AnswerEvent] = []

    def push(self, text: str) -> list[AnswerEvent]:
        """The events that ``text`` completes, in order; often none."""
        position = 0
        for mark in _MARK.finditer(text):
            self._read(text[position : mark.start()])
            self._read_mark(mark[0])
            position = mark.end()
        self._read(text[position:])
        events, self._events = self._events, []
        return _joined(events)

    def flush(self) -> list[AnswerEvent]:
        """What was held back, when the text has ended. The parser is spent then."""
        if self._mode is _Mode.HEADER and CHANNEL not in self._header and not _RECIPIENT.search(self._header):
            self._give(_Mode.CONTENT, self._header)
        elif self._mode is _Mode.CALL:
            self._end_call()
        events, self._events = self._events, []
        return _joined(events)

    def _read(self, text: str) -> None:
        if not text:
            return
        if self._mode is _Mode.HEADER:
            self._header += text
            if len(self._header) > _MOST_HEADER:
                self._mode = _Mode.CONTENT
                self._give(_Mode.CONTENT, self._header)
        elif self._mode is _Mode.CALL:
            self._read_call(text)
        elif self._mode is not _Mode.BETWEEN:
            self._give(self._mode, text)
        elif text := text.lstrip():
            self._mode = _Mode.CONTENT
            self._give(_Mode.CONTENT, text)

    def _read_mark(self, mark: str) -> None:
        if mark in (END, CALL, RETURN, START):
            if self._mode is _Mode.CALL:
                self._end_call()
            self._mode = _Mode.HEADER if mark == START else _Mode.BETWEEN
            self._header = ""
        elif mark == MESSAGE:
            self._begin_message()
        elif self._mode is _Mode.HEADER:
            self._header += CHANNEL if mark == CHANNEL else " "
        elif mark == CHANNEL:  # a message without an end
            if self._mode is _Mode.CALL:
                self._end_call()
            self._mode = _Mode.HEADER
            self._header = CHANNEL

    def _begin_message(self) -> None:
        if self._mode is _Mode.CALL:
            self._end_call()
        header, self._header = self._header, ""
        channel = header.partition(CHANNEL)[2].split(maxsplit=1)
        recipient = _RECIPIENT.search(header.replace(CHANNEL, " "))
        name = recipient[1] if recipient else ""
        self._parts_from_last = True
        if name.startswith(_FUNCTIONS) and name != _FUNCTIONS:
            self._mode = _Mode.CALL if self._tools else _Mode.CONTENT
            self._name = name.removeprefix(_FUNCTIONS)
            self._source = []
            self._scanner = JsonScanner()
            self._call_begun = self._passes_on = False
        elif name or channel[:1] == ["analysis"]:
            self._mode = _Mode.REASONING
        else:
            self._mode = _Mode.CONTENT

    def _give(self, mode: _Mode, text: str) -> None:
        if not text:
            return
        if self._parts_from_last and mode in self._has:
            text = f"\n{text}"
        self._parts_from_last = False
        self._has.add(mode)
        self._events.append(ReasoningText(text) if mode is _Mode.REASONING else ContentText(text))

    def _read_call(self, text: str) -> None:
        self._source.append(text)
        if not self._call_begun:
            text = text.lstrip(_SPACE)
            if not text:
                return
            if text[0] != "{":
                self._break()
                return
            self._call_begun = True
            self._passes_on = self._num_calls != self._max_calls
            if self._passes_on:
                self._events.append(ToolCallStarted(self._num_calls, f"call_{secrets.token_hex(12)}", self._name))
                self._num_calls += 1
        end = self._scanner.scan(text, 0)
        if end and self._passes_on:
            self._events.append(ToolCallArguments(self._num_calls - 1, text[:end]))
        if self._scanner.failed or text[end:].strip(_SPACE):
            self._break()

    def _end_call(self) -> None:
        """The text of a call has ended."""
        if not self._scanner.done:
            self._break()
        elif self._passes_on:
            self._events.append(ToolCallEnded(self._num_calls - 1))

    def _break(self) -> None:
        """What is read of the call is content, and so is what follows."""
        self._mode = _Mode.CONTENT
        source = "".join(self._source)
        if self._passes_on:
            self._events.append(ToolCallBroken(self._num_calls - 1, source))
        else:
            self._give(_Mode.CONTENT, source)


def _joined(events: Iterable[AnswerEvent]) -> list[AnswerEvent]:
    """The events, neighbours of the same kind made one."""
    joined: list[AnswerEvent] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, ContentText) and isinstance(last, ContentText):
            joined[-1] = ContentText(last.text + event.text)
        elif isinstance(event, ReasoningText) and isinstance(last, ReasoningText):
            joined[-1] = ReasoningText(last.text + event.text)
        else:
            joined.append(event)
    return joined
