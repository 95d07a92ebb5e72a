"""What ``create()`` returns: OpenAI's response objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, cast

from pydantic import VERSION, BaseModel, ConfigDict, Field

Finish = Literal["stop", "length", "tool_calls"]
Value = TypeVar("Value")
Fields = ParamSpec("Fields")


def _is_none(value: Any) -> bool:
    return value is None


Sparse = Annotated[Value | None, Field(exclude_if=_is_none)]
"""A field that JSON leaves out where it is None, as OpenAI's does; other fields are null there."""


class Response(BaseModel):
    """An object of a response.

    Its check, and the way to JSON, are made when one of them is first asked for: that takes longer than a first token.
    """

    # Before 2.14 a type that is not made yet fails where an object is written as part of something else.
    model_config = ConfigDict(defer_build=tuple(map(int, VERSION.split(".")[:2])) >= (2, 14))


def unchecked(kind: Callable[Fields, Value], *_: Fields.args, **fields: Fields.kwargs) -> Value:
    """Return ``kind(**fields)``, a ``Response`` of values that the engine vouches for."""
    return cast("Value", cast("Any", kind).model_construct(**fields))


class PromptTokensDetails(Response):
    """Where the prompt's tokens came from."""

    cached_tokens: int
    """Those whose keys and values an earlier request left in the prefix cache."""


class CompletionTokensDetails(Response):
    """What the tokens of the answers were for."""

    reasoning_tokens: int
    """Those up to the end of what the model thought aloud."""


class Usage(Response):
    """Token counts of one call, all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Sparse[PromptTokensDetails] = None
    completion_tokens_details: Sparse[CompletionTokensDetails] = None


class TopLogprob(Response):
    """One of the likeliest tokens."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer; ``bytes`` are its own, which may be part of a character only."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Response):
    """The tokens of a chat answer, or of a chunk of it."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(Response):
    """The tokens of a text completion, one list per aspect; ``text_offset`` counts characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class FunctionCall(Response):
    """The function a tool call names, and the text of a JSON object with its arguments."""

    name: str
    arguments: str


class ToolCallMessage(Response):
    """A complete call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Response):
    """The assistant's answer. Reasoning is given under both names that clients look for."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: None = None
    reasoning: Sparse[str] = None
    reasoning_content: Sparse[str] = None
    tool_calls: Sparse[list[ToolCallMessage]] = None


class ChatChoice(Response):
    """One answer."""

    index: int
    message: ChatMessage
    finish_reason: Finish
    logprobs: ChatLogprobs | None = None
    stop_string: str | None = Field(default=None, exclude=True)
    """The stop string that ended the answer; an attribute only, since OpenAI's object has no such field."""


class ChatCompletion(Response):
    """The response of ``chat.completions.create``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionCallDelta(Response):
    """The name when a call begins, then its arguments bit by bit."""

    name: Sparse[str] = None
    arguments: Sparse[str] = None


class ToolCallDelta(Response):
    """What a chunk adds to the tool call of that index; id and type come with its first."""

    index: int
    id: Sparse[str] = None
    type: Sparse[Literal["function"]] = None
    function: FunctionCallDelta


class ChatDelta(Response):
    """What a chunk adds to the answer."""

    role: Sparse[Literal["assistant"]] = None
    content: Sparse[str] = None
    reasoning: Sparse[str] = None
    reasoning_content: Sparse[str] = None
    tool_calls: Sparse[list[ToolCallDelta]] = None


class ChatChunkChoice(Response):
    """One choice's part of a chunk."""

    index: int
    delta: ChatDelta
    finish_reason: Finish | None = None
    logprobs: Sparse[ChatLogprobs] = None
    stop_string: str | None = Field(default=None, exclude=True)
    """As in ``ChatChoice``; comes with the ``finish_reason``."""


class ChatCompletionChunk(Response):
    """One element of a chat stream. The last ones carry each choice's ``finish_reason``, then the usage if asked."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Sparse[Usage] = None


class CompletionChoice(Response):
    """One continuation, or in a stream its next part."""

    index: int
    text: str
    finish_reason: Finish | None = None
    logprobs: CompletionLogprobs | None = None


class Completion(Response):
    """The response of ``completions.create``, and each element of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Sparse[Usage] = None


class Embedding(Response):
    """The embedding of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """The numbers, or in base64 the bytes of float32."""


class EmbeddingUsage(Response):
    """Token counts of a call for embeddings, all inputs together."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Response):
    """The answer of ``embeddings.create``."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
