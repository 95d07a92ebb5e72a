"""OpenAI's Responses: what a request to ``/v1/responses`` may say, and the objects of the answer.

Source: OpenAI's API description, schemas ``CreateResponse``, ``InputItem``, ``Response`` and ``OutputItem``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, with_config
from typing_extensions import Required, TypedDict

from windlass.protocol.arguments import MAX_TOOLS, STRICT, Effort

MAX_INPUT_ITEMS = 4096
MAX_METADATA = 16

# A client gives back what it got, from here or elsewhere, with fields that say nothing to a model (id, status, phase).
_LENIENT = ConfigDict(extra="ignore")

Status = Literal["in_progress", "completed", "incomplete"]
Parts = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=MAX_METADATA)]


@with_config(STRICT)
class ReasoningSettings(TypedDict, total=False):
    """How the model is to think; all but ``effort`` is accepted and not used."""

    effort: Effort | None
    """How much to think; ``none`` turns thinking off and all others turn it on, for templates that know of either."""
    summary: str | None
    generate_summary: str | None
    context: str | None
    mode: str | None


@with_config(_LENIENT)
class TextFormat(TypedDict, total=False):
    """What shape the answer must have."""

    type: Required[str]
    """Only ``text`` in this version."""


@with_config(STRICT)
class TextSettings(TypedDict, total=False):
    """How the answer is to read."""

    format: TextFormat | None
    verbosity: str | None
    """Accepted; not used."""


@with_config(STRICT)
class _UnusedFields(TypedDict, total=False):
    """What clients send and what changes nothing here. Accepted; not used."""

    stream_options: dict[str, Any] | None
    """Accepted; not used."""
    store: bool | None
    """Accepted; nothing is kept, and answers say ``"store": false``."""
    max_tool_calls: int | None
    """Accepted; it limits the tools that a provider runs, of which there are none."""
    service_tier: str | None
    """Accepted; not used."""
    user: str | None
    """Accepted; not used."""
    safety_identifier: str | None
    """Accepted; not used."""
    prompt_cache_key: str | None
    """Accepted; not used."""
    prompt_cache_retention: str | None
    """Accepted; not used."""
    prompt_cache_options: dict[str, Any] | None
    """Accepted; not used."""
    client_metadata: dict[str, Any] | None
    """Accepted; not used."""


@with_config(STRICT)
class _RefusedFields(TypedDict, total=False):
    """What asks for more than a server that keeps nothing can do: accepted with the value that asks for nothing."""

    previous_response_id: str | None
    """None: send the whole conversation as ``input``."""
    conversation: str | dict[str, Any] | None
    """None: send the whole conversation as ``input``."""
    prompt: dict[str, Any] | None
    """None: send ``instructions`` and ``input``."""
    background: bool | None
    """False."""
    truncation: str | None
    """``disabled``."""
    top_logprobs: int | None
    """0: ``/v1/chat/completions`` has logprobs."""


@with_config(STRICT)
class ResponsesBody(_UnusedFields, _RefusedFields, total=False):
    """The body of a request; None means the same as leaving a field out."""

    input: Required[str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_INPUT_ITEMS)]]
    """A user's message, or what was said so far, item by item; see ``INPUT_ITEMS``."""
    model: str | None
    instructions: str | None
    """A system message that comes before everything else."""
    max_output_tokens: Annotated[int, Field(ge=1)] | None
    """Most tokens to generate, reasoning included; clipped to the context."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] | None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None
    stream: bool | None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None
    """Function tools."""
    tool_choice: str | dict[str, Any] | None
    """``auto`` (the default) or ``none``."""
    parallel_tool_calls: bool | None
    reasoning: ReasoningSettings | None
    text: TextSettings | None
    include: Annotated[list[str], Field(fail_fast=True)] | None
    """Further parts of the answer; those that could only come from what this server does not have are passed over."""
    metadata: Metadata | None
    """Repeated in the answer."""


@with_config(_LENIENT)
class InputMessage(TypedDict, total=False):
    """A message: text, or parts with text (``input_text``, ``output_text``, ``text``, ``refusal``)."""

    type: Literal["message"] | None
    role: Required[Literal["user", "assistant", "system", "developer"]]
    content: Required[str | Parts]


@with_config(_LENIENT)
class InputFunctionCall(TypedDict, total=False):
    """A call that the model made."""

    type: Required[Literal["function_call"]]
    call_id: Required[str]
    name: Required[str]
    arguments: Required[str]


@with_config(_LENIENT)
class InputFunctionOutput(TypedDict, total=False):
    """What a called function gave: text, or parts with text."""

    type: Required[Literal["function_call_output"]]
    call_id: Required[str]
    output: Required[str | Parts]


@with_config(_LENIENT)
class InputReasoning(TypedDict, total=False):
    """What the model thought aloud before the message or call that follows."""

    type: Required[Literal["reasoning"]]
    summary: Parts | None
    content: Parts | None


INPUT_ITEMS: dict[str, type] = {
    "message": InputMessage,
    "function_call": InputFunctionCall,
    "function_call_output": InputFunctionOutput,
    "reasoning": InputReasoning,
}
"""The items of ``input`` by their type, which a message may leave out."""


@with_config(_LENIENT)
class FunctionTool(TypedDict, total=False):
    """A function that the model may call. ``strict`` and the like are accepted; not used."""

    type: Required[Literal["function"]]
    name: Required[str]
    description: str | None
    parameters: dict[str, Any] | None


OTHER_TOOLS = frozenset(
    {
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "custom",
        "file_search",
        "image_generation",
        "local_shell",
        "mcp",
        "namespace",
        "programmatic_tool_calling",
        "shell",
        "tool_search",
        "web_search",
        "web_search_preview",
    }
)
"""Types of tools that OpenAI runs itself, or whose calls are no JSON. Agents send some of them unasked, beside their
functions: they are passed over there, and a response lists the tools that the model was shown."""


class ResponseEvent(BaseModel):
    """An event of a stream, with further fields by its type. It ends with that of the response's last status."""

    model_config = ConfigDict(extra="allow")
    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: int


class OutputText(BaseModel):
    """The text of a message."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[dict[str, Any]] = []
    logprobs: list[dict[str, Any]] = []


class MessageItem(BaseModel):
    """A message of the model."""

    id: str
    type: Literal["message"] = "message"
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class ReasoningText(BaseModel):
    """What the model thought aloud."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class ReasoningItem(BaseModel):
    """What the model thought aloud, and no summary of it."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: Status
    summary: list[dict[str, Any]] = []
    content: list[ReasoningText]


class FunctionCallItem(BaseModel):
    """A call of a function; ``arguments`` is the text of a JSON object when ``status`` is ``completed``."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: Status
    call_id: str
    name: str
    arguments: str


OutputItem = MessageItem | ReasoningItem | FunctionCallItem


class InputTokensDetails(BaseModel):
    """Where the tokens of the input came from."""

    cached_tokens: int
    cache_write_tokens: int = 0
    """0: a cache that nobody pays for does not count what is written."""


class OutputTokensDetails(BaseModel):
    """What the tokens of the output were for."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Token counts of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(BaseModel):
    """Why a response failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(BaseModel):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class Response(BaseModel):
    """A response: what was asked, and what the model gave."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = {}
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    reasoning: dict[str, Any]
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["auto", "none"] = "auto"
    tools: list[dict[str, Any]] = []
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None

    def to_json(self) -> dict[str, Any]:
        """As an object of JSON, which has no ``usage`` before the end."""
        return self.model_dump(exclude={"usage"} if self.usage is None else None)
