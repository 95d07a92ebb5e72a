"""What ``create()`` returns: OpenAI's response objects."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

Finish = Literal["stop", "length", "tool_calls"]


class Usage(BaseModel):
    """Token counts of one call, all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(BaseModel):
    """The assistant's answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    finish_reason: Finish
    logprobs: Any | None = None


class ChatCompletion(BaseModel):
    """The response of ``chat.completions.create``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """What a chunk adds to the answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """One choice's part of a chunk."""

    index: int
    delta: ChatDelta
    finish_reason: Finish | None = None
    logprobs: Any | None = None


class ChatCompletionChunk(BaseModel):
    """One element of a chat stream. The last ones carry each choice's ``finish_reason``, then the usage if asked."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(BaseModel):
    """One continuation, or in a stream its next part."""

    index: int
    text: str
    finish_reason: Finish | None = None
    logprobs: Any | None = None


class Completion(BaseModel):
    """The response of ``completions.create``, and each element of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
