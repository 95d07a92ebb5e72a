"""An answer as a row of parts: reasoning, text, tool calls; each is opened, grows, and is closed before the next."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from windlass.protocol.responses import ChatDelta, ChatMessage, FunctionCallDelta, ToolCallDelta

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True, eq=False)
class Part:
    """One part. ``index`` counts the parts of an answer from 0; ``id`` and ``name`` are those of a call."""

    kind: Kind
    index: int
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it so far; of a call the arguments."""
        return "".join(self.pieces)

    @property
    def is_whole_call(self) -> bool:
        """Whether it is a call whose arguments are an object of JSON, as those of a call that was cut are not."""
        try:
            return self.kind == "call" and isinstance(json.loads(self.text), dict)
        except (ValueError, RecursionError):
            return False


@dataclass(frozen=True, slots=True)
class Opened:
    """A part begins."""

    part: Part


@dataclass(frozen=True, slots=True)
class Grown:
    """``text`` was added to a part."""

    part: Part
    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A part is over."""

    part: Part


Step = Opened | Grown | Closed


class AnswerParts:
    """Takes what a chat stream adds to an answer apart into steps. At most one part is open at a time."""

    def __init__(self) -> None:
        self._open: Part | None = None
        self._num_parts = 0

    def add(self, delta: ChatDelta) -> list[Step]:
        """Return the steps of what a chunk adds."""
        steps: list[Step] = []
        calls = list(delta.tool_calls or ())
        # More of the call that is open goes before what a chunk adds besides.
        while calls and calls[0].id is None:
            self._grow(steps, calls.pop(0).function.arguments)
        self._write(steps, "reasoning", delta.reasoning)
        self._write(steps, "text", delta.content)
        for call in calls:
            if call.id is not None:
                self._begin(steps, Part("call", self._num_parts, call.id, call.function.name or ""))
            self._grow(steps, call.function.arguments)
        return steps

    def end(self) -> list[Step]:
        """Return the last steps. An answer without any part gets an empty text."""
        steps: list[Step] = []
        if not self._num_parts:
            self._begin(steps, Part("text", 0))
        return steps + self.close()

    def close(self) -> list[Step]:
        """Return the steps that close what is open."""
        steps: list[Step] = []
        self._close(steps)
        return steps

    def _write(self, steps: list[Step], kind: Kind, text: str | None) -> None:
        if not text:
            return
        if self._open is None or self._open.kind != kind:
            self._begin(steps, Part(kind, self._num_parts))
        self._grow(steps, text)

    def _begin(self, steps: list[Step], part: Part) -> None:
        self._close(steps)
        self._open = part
        self._num_parts += 1
        steps.append(Opened(part))

    def _grow(self, steps: list[Step], text: str | None) -> None:
        if text and self._open is not None:
            self._open.pieces.append(text)
            steps.append(Grown(self._open, text))

    def _close(self, steps: list[Step]) -> None:
        if self._open is not None:
            steps.append(Closed(self._open))
            self._open = None


def delta_of(message: ChatMessage) -> ChatDelta:
    """Return a whole answer as what one chunk adds."""
    calls = [
        ToolCallDelta(
            index=index,
            id=call.id,
            type="function",
            function=FunctionCallDelta(name=call.function.name, arguments=call.function.arguments),
        )
        for index, call in enumerate(message.tool_calls or ())
    ]
    return ChatDelta(content=message.content, reasoning=message.reasoning, tool_calls=calls or None)
