"""Chat answers as Anthropic's messages: the events of a stream, and the whole object."""

from __future__ import annotations

import json
import secrets
from typing import Any

from windlass.protocol.messages_api import (
    ContentBlock,
    Message,
    MessagesBody,
    MessageUsage,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from windlass.protocol.responses import ChatChoice, ChatChunkChoice, ChatCompletion, ChatCompletionChunk, Usage
from windlass.server.answer_parts import AnswerParts, Closed, Opened, Part, Step, delta_of

Event = dict[str, Any]


class MessageWriter:
    """Makes the events of one message, and the message itself, of what a chat call gives.

    ``begin`` comes first; ``end`` comes last, unless an error takes its place.

    Args:
        body: the request, checked, without None.
        model: the name of the model that answers.
        num_prompt_tokens: tokens of the prompt.

    Attributes:
        message: the message as far as it is known.
    """

    def __init__(self, body: MessagesBody, *, model: str, num_prompt_tokens: int) -> None:
        self._max_tokens = body["max_tokens"]
        self._stop_sequences = body.get("stop_sequences") or []
        self._parts = AnswerParts()
        self._last: ChatChoice | ChatChunkChoice | None = None
        usage = MessageUsage(input_tokens=num_prompt_tokens, output_tokens=0)
        self.message = Message(id=f"msg_{secrets.token_hex(24)}", model=model, usage=usage)

    def begin(self) -> list[Event]:
        """Return the event that says that the request was accepted."""
        return [{"type": "message_start", "message": self.message.model_dump()}]

    def add(self, chunk: ChatCompletionChunk) -> list[Event]:
        """Return the events of a chunk."""
        events: list[Event] = []
        for choice in chunk.choices:
            events += self._events(self._parts.add(choice.delta))
            self._last = choice
        return events

    def add_whole(self, completion: ChatCompletion) -> list[Event]:
        """Return the events of a whole answer."""
        self._last = completion.choices[0]
        return self._events(self._parts.add(delta_of(self._last.message)))

    def end(self, usage: Usage) -> list[Event]:
        """Return the last events of an answer that came to its end."""
        events = self._events(self._parts.end())
        message = self.message
        message.usage = _usage(usage)
        message.stop_reason, message.stop_sequence = self._stop(usage)
        delta = {"stop_reason": message.stop_reason, "stop_sequence": message.stop_sequence}
        return [
            *events,
            {"type": "message_delta", "delta": delta, "usage": message.usage.model_dump()},
            {"type": "message_stop"},
        ]

    def _stop(self, usage: Usage) -> tuple[StopReason, str | None]:
        finish = self._last.finish_reason if self._last is not None else None
        stop = self._last.stop_string if self._last is not None else None
        if finish == "tool_calls":
            return "tool_use", None
        if finish == "length":
            is_full = usage.completion_tokens < self._max_tokens
            return ("model_context_window_exceeded" if is_full else "max_tokens"), None
        # The model's own template may have stop strings as well.
        return ("stop_sequence", stop) if stop in self._stop_sequences else ("end_turn", None)

    def _events(self, steps: list[Step]) -> list[Event]:
        events: list[Event] = []
        for step in steps:
            index = step.part.index
            if isinstance(step, Opened):
                block = _empty_block(step.part).model_dump()
                events.append({"type": "content_block_start", "index": index, "content_block": block})
            elif isinstance(step, Closed):
                self.message.content.append(_block(step.part))
                if step.part.kind == "reasoning":
                    signature = {"type": "signature_delta", "signature": ""}
                    events.append({"type": "content_block_delta", "index": index, "delta": signature})
                events.append({"type": "content_block_stop", "index": index})
            else:
                delta = _delta(step.part, step.text)
                events.append({"type": "content_block_delta", "index": index, "delta": delta})
        return events


def whole_message(body: MessagesBody, completion: ChatCompletion, *, model: str) -> Message:
    """Return the message with the answer in it; the arguments are those of ``MessageWriter``."""
    writer = MessageWriter(body, model=model, num_prompt_tokens=completion.usage.prompt_tokens)
    writer.add_whole(completion)
    writer.end(completion.usage)
    return writer.message


def _delta(part: Part, text: str) -> dict[str, str]:
    if part.kind == "text":
        return {"type": "text_delta", "text": text}
    if part.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "input_json_delta", "partial_json": text}


def _empty_block(part: Part) -> ContentBlock:
    if part.kind == "text":
        return TextBlock(text="")
    if part.kind == "reasoning":
        return ThinkingBlock(thinking="")
    return ToolUseBlock(id=part.id, name=part.name, input={})


def _block(part: Part) -> ContentBlock:
    if part.kind == "text":
        return TextBlock(text=part.text)
    if part.kind == "reasoning":
        return ThinkingBlock(thinking=part.text)
    return ToolUseBlock(id=part.id, name=part.name, input=json.loads(part.text) if part.is_whole_call else {})


def _usage(usage: Usage) -> MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    return MessageUsage(
        input_tokens=usage.prompt_tokens - cached,
        cache_read_input_tokens=cached,
        output_tokens=usage.completion_tokens,
    )
