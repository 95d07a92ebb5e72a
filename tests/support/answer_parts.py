"""The events of an answer, in short."""

from __future__ import annotations

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

Parts = list[tuple[str, ...]]


def merged(events: Iterable[AnswerEvent]) -> Parts:
    """The events in short, neighbours of the same kind joined; ids, which are random, left out."""
    parts: Parts = []
    for event in events:
        if isinstance(event, ToolCallStarted):
            part: tuple[str, ...] = (f"start {event.index}", event.name)
        elif isinstance(event, ToolCallEnded):
            part = (f"end {event.index}",)
        elif isinstance(event, ToolCallBroken):
            part = (f"broken {event.index}", event.source)
        else:
            assert isinstance(event, (ContentText, ReasoningText, ToolCallArguments))
            assert event.text
            kind = {ContentText: "content", ReasoningText: "reasoning"}.get(type(event), "arguments")
            part = (kind, parts.pop()[1] + event.text) if parts and parts[-1][0] == kind else (kind, event.text)
        parts.append(part)
    return parts
