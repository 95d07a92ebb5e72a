"""What an answer is made of: text, reasoning and tool calls, as they come and put together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class Parser(Protocol):
    """Takes the text of one answer apart while it comes."""

    def push(self, text: str) -> list[AnswerEvent]:
        """The events that ``text`` completes, in order; often none."""

    def flush(self) -> list[AnswerEvent]:
        """What was held back, when the text has ended. The parser is spent then."""


class AnswerEvent:
    """The next part of an answer; one of the classes below."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ContentText(AnswerEvent):
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningText(AnswerEvent):
    """Text that the model thought aloud."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStarted(AnswerEvent):
    """A call of the tool ``name``. ``index`` counts the calls of an answer from 0; ``id`` is unique."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments(AnswerEvent):
    """More of a call's arguments. All of them joined are a JSON object, as the model wrote it."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnded(AnswerEvent):
    """The call is complete; its arguments are valid JSON."""

    index: int


@dataclass(frozen=True, slots=True)
class ToolCallBroken(AnswerEvent):
    """The call cannot be completed: it is malformed, or the answer ended in it.

    ``source`` is all that the model wrote of it until there, for a reader that has not passed the call on yet and can
    take it as content instead. What comes after ``source`` follows as content.
    """

    index: int
    source: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete call; ``arguments`` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Answer:
    """A whole answer, built from its events. A broken call is content, where it stood."""

    tool_calls: list[ToolCall] = field(init=False, default_factory=list)
    _content: list[str] = field(init=False, default_factory=list)
    _reasoning: list[str] = field(init=False, default_factory=list)
    _started: ToolCallStarted | None = field(init=False, default=None)
    _arguments: list[str] = field(init=False, default_factory=list)

    @property
    def content(self) -> str:
        """The text for the user."""
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        """What the model thought aloud."""
        return "".join(self._reasoning)

    def add(self, event: AnswerEvent) -> None:
        """Take the next event."""
        if isinstance(event, ContentText):
            self._content.append(event.text)
        elif isinstance(event, ReasoningText):
            self._reasoning.append(event.text)
        elif isinstance(event, ToolCallStarted):
            self._started = event
        elif isinstance(event, ToolCallArguments):
            self._arguments.append(event.text)
        elif self._started is not None:
            if isinstance(event, ToolCallBroken):
                self._content.append(event.source)
            else:
                self.tool_calls.append(ToolCall(self._started.id, self._started.name, "".join(self._arguments)))
            self._started = None
            self._arguments = []
