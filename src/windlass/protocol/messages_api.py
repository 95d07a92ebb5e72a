"""Anthropic's Messages: what requests to ``/v1/messages`` may say, and the objects of the answer.

Source: Anthropic's API reference, "Messages", as its Python client states the types.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, with_config
from typing_extensions import Required, TypedDict

from windlass.protocol.arguments import MAX_STOPS, MAX_TOOLS, STRICT, StopString

MAX_MESSAGES = 4096
TEXT_ONLY = "the model reads text only"

# A client gives back blocks as it got them, and marks some for a cache; what says nothing to a model is passed over.
_LENIENT = ConfigDict(extra="ignore")

Blocks = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


@with_config(_LENIENT)
class ThinkingSettings(TypedDict, total=False):
    """Whether the model is to think aloud. ``budget_tokens`` and ``display`` are accepted; not used."""

    type: Required[Literal["enabled", "adaptive", "between_tools", "disabled"]]
    """``disabled`` turns thinking off and all others turn it on, for templates that know of either."""


@with_config(STRICT)
class ToolChoice(TypedDict, total=False):
    """Which tools may be called."""

    type: Required[str]
    """``auto`` or ``none``."""
    name: str | None
    disable_parallel_tool_use: bool | None


@with_config(STRICT)
class OutputSettings(TypedDict, total=False):
    """How the answer is to be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None
    """How much to think, where ``thinking`` is on, for templates that know of it."""
    format: None


@with_config(STRICT)
class _UnusedFields(TypedDict, total=False):
    """What clients send and what changes nothing here. Accepted; not used."""

    cache_control: dict[str, Any] | None
    """Accepted; not used."""
    context_management: dict[str, Any] | None
    """Accepted; nothing is left out of the conversation."""
    diagnostics: dict[str, Any] | None
    """Accepted; not used."""
    inference_geo: str | None
    """Accepted; not used."""
    metadata: dict[str, Any] | None
    """Accepted; not used."""
    service_tier: str | None
    """Accepted; not used."""
    speed: str | None
    """Accepted; not used."""


@with_config(STRICT)
class PromptBody(_UnusedFields, total=False):
    """What both routes take: all that makes the prompt. None means the same as leaving a field out."""

    messages: Required[Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]]
    model: str | None
    system: str | Blocks | None
    """Comes before the messages: text, or blocks of text."""
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None
    tool_choice: ToolChoice | None
    thinking: ThinkingSettings | None
    output_config: OutputSettings | None


@with_config(STRICT)
class CountBody(PromptBody, total=False):
    """The body of ``/v1/messages/count_tokens``."""


@with_config(STRICT)
class MessagesBody(PromptBody, total=False):
    """The body of ``/v1/messages``."""

    max_tokens: Required[Annotated[int, Field(ge=1)]]
    """Most tokens to generate, thinking included; clipped to the context."""
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None
    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] | None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None
    top_k: Annotated[int, Field(ge=0)] | None
    stream: bool | None


@with_config(_LENIENT)
class InputMessage(TypedDict, total=False):
    """A message: text, or blocks; see ``INPUT_BLOCKS``."""

    role: Required[Literal["user", "assistant", "system"]]
    content: Required[str | Blocks]


@with_config(_LENIENT)
class InputText(TypedDict, total=False):
    """Text."""

    type: Required[Literal["text"]]
    text: Required[str]


@with_config(_LENIENT)
class InputThinking(TypedDict, total=False):
    """What the model thought aloud. Signatures say nothing here."""

    type: Required[Literal["thinking"]]
    thinking: Required[str]


@with_config(_LENIENT)
class InputRedactedThinking(TypedDict, total=False):
    """Thoughts that only their provider can read; passed over."""

    type: Required[Literal["redacted_thinking"]]


@with_config(_LENIENT)
class InputToolUse(TypedDict, total=False):
    """A call that the model made."""

    type: Required[Literal["tool_use"]]
    id: Required[str]
    name: Required[str]
    input: Required[dict[str, Any]]


@with_config(_LENIENT)
class InputToolResult(TypedDict, total=False):
    """What a called tool gave: text, or blocks of text. That ``is_error`` is for the text to say."""

    type: Required[Literal["tool_result"]]
    tool_use_id: Required[str]
    content: str | Blocks | None


INPUT_BLOCKS: dict[str, dict[str, type]] = {
    "system": {"text": InputText},
    "user": {"text": InputText, "tool_result": InputToolResult},
    "assistant": {
        "text": InputText,
        "thinking": InputThinking,
        "redacted_thinking": InputRedactedThinking,
        "tool_use": InputToolUse,
    },
}
"""The blocks of a message by its role and their type."""


@with_config(_LENIENT)
class Tool(TypedDict, total=False):
    """A tool that the model may call. ``strict``, ``cache_control`` and the like are accepted; not used."""

    type: Literal["custom"] | None
    name: Required[Annotated[str, Field(min_length=1)]]
    description: str | None
    input_schema: Required[dict[str, Any]]


class MessageEvent(BaseModel):
    """An event of a stream, with further fields by its type. It ends with ``message_stop`` or ``error``."""

    model_config = ConfigDict(extra="allow")
    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    ]


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class TextBlock(BaseModel):
    """Text."""

    type: Literal["text"] = "text"
    text: str


class ThinkingBlock(BaseModel):
    """What the model thought aloud. The signature is empty: whoever wants to may change the text."""

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str = ""


class ToolUseBlock(BaseModel):
    """A call of a tool."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(BaseModel):
    """Token counts of a message; the prompt has ``input_tokens`` and those that were read from the prefix cache."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int


class Message(BaseModel):
    """A message of the model."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[ContentBlock] = []
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCount(BaseModel):
    """The answer of ``/v1/messages/count_tokens``."""

    input_tokens: int


class MessagesErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class MessagesError(BaseModel):
    """Anthropic's error body."""

    type: Literal["error"] = "error"
    error: MessagesErrorDetail
    request_id: str | None
