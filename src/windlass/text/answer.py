"""From the text of an answer to its parts: content, reasoning in ``<think>``, and tool calls in ``<tool_call>``."""

from __future__ import annotations

import enum
import re
import secrets

from windlass.text.answer_events import (
    AnswerEvent,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallBroken,
    ToolCallEnded,
    ToolCallStarted,
)
from windlass.text.tool_calls import TOOL_CALL, TOOL_CALL_END, ToolCallScanner

THINK = "<think>"
"""The marker before reasoning."""

THINK_END = "</think>"
"""The marker after it."""

_NEWLINES = re.compile(r"\n*")


def knows_thinking(template_source: str) -> bool:
    """Whether the models of this chat template think aloud between ``<think>`` and ``</think>``."""
    return THINK in template_source


def ends_in_reasoning(prompt: str) -> bool:
    """Whether ``prompt``, or its last part, ends with an open ``<think>``, so that the answer begins as reasoning."""
    return prompt.rstrip().endswith(THINK)


class _Mode(enum.Enum):
    """Where in the answer the parser is."""

    BEGIN = enum.auto()
    BEGIN_REASONING = enum.auto()
    REASONING = enum.auto()
    CONTENT = enum.auto()
    CALL = enum.auto()
    AFTER_CALL = enum.auto()


# Where one marker may stand, and only at once: the marker, what follows it, what follows when it is not there.
_OPTIONAL = {
    _Mode.BEGIN: (THINK, _Mode.REASONING, _Mode.CONTENT),
    _Mode.BEGIN_REASONING: (THINK, _Mode.REASONING, _Mode.REASONING),
    _Mode.AFTER_CALL: (TOOL_CALL_END, _Mode.CONTENT, _Mode.CONTENT),
}


class AnswerParser:
    """Takes the text of an answer apart while it comes.

    However the text is cut, the events are the same, but for the cuts in text and arguments. Nothing is lost or given
    twice, and no part of a marker is passed on as long as it may become one. Newlines beside a marker belong to it,
    as in the templates that write them. Time is linear in the text. Not thread-safe: one per stream.

    Reasoning stands at the beginning of the answer, up to the first ``</think>``; a ``<think>`` that comes later is
    content. A tool call stands in the content, and is passed on from the moment that its name is known and its
    arguments begin. One that turns out malformed, or is unfinished at the end, is content if it was not passed on yet;
    otherwise it is reported as broken and what follows the mistake is content. A missing ``</tool_call>`` is forgiven.

    Args:
        tools: the request has tools that may be called; without it ``<tool_call>`` is content.
        reasoning: the model thinks aloud; without it ``<think>`` is content.
        starts_in_reasoning: the prompt ended with ``<think>``.
        parallel_tool_calls: without it, complete calls after the first that began are dropped.
    """

    def __init__(
        self, *, tools: bool, reasoning: bool, starts_in_reasoning: bool = False, parallel_tool_calls: bool = True
    ) -> None:
        self._call_marker = TOOL_CALL if tools else None
        self._max_calls = None if parallel_tool_calls else 1
        self._mode = _Mode.CONTENT
        if reasoning:
            self._mode = _Mode.BEGIN_REASONING if starts_in_reasoning else _Mode.BEGIN
        self._held = ""
        self._newlines = 0
        self._after_marker = self._mode is _Mode.BEGIN_REASONING
        self._call = ToolCallScanner()
        self._call_source: list[str] = []
        self._call_is_passed_on = False
        self._num_calls = 0
        self._texts: list[str] = []
        self._events: list[AnswerEvent] = []

    def push(self, text: str) -> list[AnswerEvent]:
        """The events that ``text`` completes, in order; often none."""
        text, self._held = self._held + text, ""
        position = 0
        while position < len(text):
            if self._mode is _Mode.CALL:
                position = self._read_call(text, position)
            elif self._mode is _Mode.REASONING:
                position = self._read_text(text, position, THINK_END)
            elif self._mode is _Mode.CONTENT:
                position = self._read_text(text, position, self._call_marker)
            else:
                position = self._read_optional_marker(text, position)
        return self._take_events()

    def flush(self) -> list[AnswerEvent]:
        """What was held back, when the text has ended. The parser is spent then."""
        if self._mode is _Mode.CALL:
            self._break_call()
        elif self._mode is not _Mode.AFTER_CALL:  # there, what is held is the beginning of its marker
            self._pass_on(self._held)
        self._held = ""
        self._give_newlines()
        return self._take_events()

    # Text. _newlines counts those that are held back, since a marker may follow; after a marker they are dropped.

    def _skip_newlines(self, text: str, start: int) -> int:
        match = _NEWLINES.match(text, start)
        end = match.end() if match else start
        if not self._after_marker:
            self._newlines += end - start
        return end

    def _read_optional_marker(self, text: str, start: int) -> int:
        marker, follows, otherwise = _OPTIONAL[self._mode]
        start = self._skip_newlines(text, start)
        if text.startswith(marker, start):
            self._set_after_marker(follows)
            return start + len(marker)
        if _partial_from(text, start, marker) > start:
            self._mode = otherwise
            return start
        self._held = text[start:]
        return len(text)

    def _read_text(self, text: str, start: int, marker: str | None) -> int:
        if self._after_marker:
            start = self._skip_newlines(text, start)
        if marker is None:
            self._pass_on(text[start:])
            self._give_newlines()
            return len(text)
        found = text.find(marker, start)
        end = found if found >= 0 else _partial_from(text, start, marker)
        self._pass_on(text[start:end])
        if found < 0:
            self._held = text[end:]
            return len(text)
        if marker == TOOL_CALL:
            self._mode = _Mode.CALL
            self._call = ToolCallScanner()
            self._call_source = ["\n" * self._newlines, marker]
            self._call_is_passed_on = False
            self._newlines = 0
        else:
            self._set_after_marker(_Mode.CONTENT)
        return end + len(marker)

    def _set_after_marker(self, mode: _Mode) -> None:
        self._add_texts()
        self._mode = mode
        self._newlines = 0
        self._after_marker = True

    def _pass_on(self, text: str) -> None:
        """Give ``text`` out in the present mode, but for the newlines at its end."""
        if not text:
            return
        self._after_marker = False
        body = text.rstrip("\n")
        if body:
            self._texts += ("\n" * self._newlines, body)
            self._newlines = 0
        self._newlines += len(text) - len(body)

    def _give_newlines(self) -> None:
        self._texts.append("\n" * self._newlines)
        self._newlines = 0

    # Calls.

    def _read_call(self, text: str, start: int) -> int:
        call = self._call
        end = call.scan(text, start)
        self._call_source.append(text[start:end])
        if call.started and not self._call_is_passed_on and self._num_calls != self._max_calls:
            self._add_event(ToolCallStarted(self._num_calls, f"call_{secrets.token_hex(12)}", call.name or ""))
            self._num_calls += 1
            self._call_is_passed_on = True
        if self._call_is_passed_on and (arguments := call.take_arguments()):
            self._add_event(ToolCallArguments(self._num_calls - 1, arguments))
        if call.done:
            if self._call_is_passed_on:
                self._add_event(ToolCallEnded(self._num_calls - 1))
            self._set_after_marker(_Mode.AFTER_CALL)
        elif call.failed:
            self._break_call()
        return end

    def _break_call(self) -> None:
        source = "".join(self._call_source)
        self._mode = _Mode.CONTENT
        self._after_marker = False
        if self._call_is_passed_on:
            self._add_event(ToolCallBroken(self._num_calls - 1, source))
        else:
            self._pass_on(source)

    # Events.

    def _add_texts(self) -> None:
        """Make one event of the texts that were passed on in the present mode."""
        text = "".join(self._texts)
        self._texts = []
        if text:
            is_reasoning = self._mode in (_Mode.REASONING, _Mode.BEGIN_REASONING)
            self._events.append(ReasoningText(text) if is_reasoning else ContentText(text))

    def _add_event(self, event: AnswerEvent) -> None:
        self._add_texts()
        self._events.append(event)

    def _take_events(self) -> list[AnswerEvent]:
        self._add_texts()
        events, self._events = self._events, []
        return events


def _partial_from(text: str, start: int, marker: str) -> int:
    """Where, from ``start`` on, the end of ``text`` begins that is the beginning of ``marker``, which has one ``<``."""
    at = text.rfind("<", start)
    return at if at >= 0 and marker.startswith(text[at:]) else len(text)
