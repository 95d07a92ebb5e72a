"""What other interfaces share on the way to a chat call and back: messages of texts, and chunks as their events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from windlass.protocol.arguments import ChatArguments
from windlass.protocol.responses import ChatCompletion, ChatCompletionChunk, Usage
from windlass.serve.call import AsyncStream
from windlass.serve.engine import AsyncMLCEngine
from windlass.server.answers import named_event
from windlass.server.completion_calls import noted
from windlass.server.notes import RequestNote
from windlass.server.served import Choice

Event = dict[str, Any]


class Writer(Protocol):
    """Turns the chunks of one stream, in order, into events, each with its ``type``."""

    def begin(self) -> list[Event]:
        """What comes before the first chunk."""
        ...

    def add(self, chunk: ChatCompletionChunk) -> list[Event]:
        """What a chunk adds."""
        ...

    def end(self, usage: Usage) -> list[Event]:
        """What comes after the last one."""
        ...


def with_adapter(arguments: ChatArguments, choice: Choice) -> ChatArguments:
    """Have the call use the adapter that the request names, if it does."""
    if choice.adapter is not None:
        arguments["lora"] = choice.adapter
    return arguments


def text_content(texts: Sequence[str]) -> str | list[dict[str, Any]]:
    """Return the content of a chat message with these texts, of which most have one only."""
    if len(texts) == 1:
        return texts[0]
    return [{"type": "text", "text": text} for text in texts]


async def create_chat(
    engine: AsyncMLCEngine, arguments: ChatArguments, streams: bool
) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
    """Start the chat call behind a request; a stream ends with its usage, which a ``Writer`` waits for."""
    if streams:
        arguments["stream_options"] = {"include_usage": True}
    return await engine.chat.completions.create(stream=streams, **arguments)


async def written_events(
    stream: AsyncStream[ChatCompletionChunk], writer: Writer, note: RequestNote
) -> AsyncGenerator[bytes, None]:
    """The events that ``writer`` makes of a stream, as they are sent. The stream is closed at the end."""
    async with stream, aclosing(noted(stream, note)) as chunks:
        for event in writer.begin():
            yield event_bytes(event)
        async for chunk in chunks:
            for event in writer.add(chunk) if chunk.usage is None else writer.end(chunk.usage):
                yield event_bytes(event)


def event_bytes(event: Event) -> bytes:
    """One event, under the name that is its type."""
    return named_event(event["type"], event)
