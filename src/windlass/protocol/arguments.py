"""What ``create()`` takes: OpenAI's arguments, written once, for the sync and async engines and the server.

Each dictionary type below is both the static signature (``**arguments: Unpack[ChatArguments]``) and, through pydantic,
the check at run time: unknown names and values out of range are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import Required, TypedDict

from windlass.errors import InvalidRequestError
from windlass.protocol.plain import ROLES
from windlass.protocol.validation import validate

MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_CHOICES = 16
MAX_BIASES = 1024
MAX_TOOLS = 128
MAX_SUFFIX_BYTES = 65536
MAX_INPUTS = 2048

STRICT = ConfigDict(extra="forbid")
"""No unknown names."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
LogitBias = Annotated[float, Field(ge=-100.0, le=100.0)]
TokenId = Annotated[int, Field(ge=0)]
Prompt = str | Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_BYTES)]


def _check_role(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("role") not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}, not {message.get('role')!r}")
    return message


Message = Annotated[dict[str, Any], AfterValidator(_check_role)]


@with_config(STRICT)
class StreamOptions(TypedDict, total=False):
    """What a stream carries besides text."""

    include_usage: bool
    """End with one more chunk that has no choices but the usage of the call."""


@with_config(STRICT)
class DebugConfig(TypedDict, total=False):
    """Switches for tests and benchmarks."""

    ignore_eos: bool
    """Go on past end tokens and stop strings until ``max_tokens``."""
    pinned_system_prompt: bool
    """Keep the prompt's pages in the prefix cache until ``reset()``."""


class ResponseFormat(TypedDict, total=False):
    """What shape the answer must have."""

    type: Required[str]


@with_config(STRICT)
class CommonArguments(TypedDict, total=False):
    """Arguments of chat and text completions alike; None means the same as leaving one out."""

    model: str | None
    """Repeated in the response. An engine has one model and ignores this, but for an adapter's name behind a colon."""
    lora: Annotated[str, Field(min_length=1, max_length=128)] | None
    """Name of a loaded LoRA adapter to answer with."""
    max_tokens: Annotated[int, Field(ge=1)] | None
    """Most tokens to generate per choice; clipped to the context."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] | None
    """0 takes the most likely token; otherwise the model's own default, or 1."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None
    """Draw from the smallest set of likeliest tokens that has this probability (Holtzman et al., 2020)."""
    top_k: Annotated[int, Field(ge=0)] | None
    """Draw from this many likeliest tokens; 0 for all."""
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None
    """Draw from tokens at least this likely in relation to the likeliest one."""
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None
    """Taken from the logit of each token that stands in the answer already."""
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None
    """Taken from the logit of each token once for each time it stands in the answer."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10.0)] | None
    """Divides the positive logits of tokens in prompt and answer, and multiplies the negative ones."""
    logit_bias: Annotated[dict[str, LogitBias] | dict[int, LogitBias], Field(max_length=MAX_BIASES)] | None
    """Token ids, as numbers or decimal strings, and what is added to their logits, -100 to 100."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None
    """Number of independent choices."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None
    """The same request with the same seed gives the same tokens; a fresh seed is drawn when left out."""
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None
    """Strings that end the answer; they are not part of it."""
    stream_options: StreamOptions | None
    request_id: Annotated[str, Field(min_length=1, max_length=256)] | None
    """Name of the call for ``abort()``; must not be in use. One is made up when left out."""
    timeout: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None
    """Seconds after which the call ends with ``RequestTimeoutError``, wherever it is."""
    response_format: ResponseFormat | None
    """Only ``{"type": "text"}`` in this version."""
    extra_body: dict[str, Any] | None
    """More of these arguments, as OpenAI's client takes them."""
    debug_config: DebugConfig | None
    """MLC-LLM's debugging switches, which it takes inside ``extra_body``."""
    user: str | None
    """Accepted for compatibility; not used."""


@with_config(STRICT)
class ChatArguments(CommonArguments, total=False):
    """Arguments of ``chat.completions.create``."""

    messages: Required[Annotated[list[Message], Field(min_length=1, fail_fast=True)]]
    """The conversation, OpenAI's message objects; the answer's own message object may be appended to it as it is."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None
    """OpenAI's newer name of ``max_tokens``."""
    logprobs: bool | None
    """Report each token's logprob."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None
    """How many of the likeliest tokens to report beside each; needs ``logprobs``."""
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None
    """Function tools the template presents to the model."""
    tool_choice: str | dict[str, Any] | None
    """``auto`` (the default with tools) or ``none``."""
    parallel_tool_calls: bool | None
    """False keeps the first tool call of an answer only."""
    chat_template_kwargs: dict[str, Any] | None
    """Further variables for the model's chat template, such as ``enable_thinking``."""
    reasoning_effort: Effort | None
    """How much to think, for templates that know ``reasoning_effort`` or ``enable_thinking``; others ignore it.
    What ``chat_template_kwargs`` says of these comes first."""


@with_config(STRICT)
class CompletionArguments(CommonArguments, total=False):
    """Arguments of ``completions.create``."""

    prompt: Required[Prompt | Annotated[list[Prompt], Field(min_length=1, fail_fast=True)]]
    """Text, or token ids as they are; or a list of such prompts, each of which gets its own ``n`` choices, in order."""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None
    """Report each token's logprob, and this many of the likeliest tokens beside it."""
    echo: bool | None
    """Begin the answer with the prompt."""
    suffix: Annotated[str, Field(max_length=MAX_SUFFIX_BYTES)] | None
    """Text to put behind the answer; the model does not see it."""


@with_config(STRICT)
class EmbeddingArguments(TypedDict, total=False):
    """Arguments of ``embeddings.create``; None means the same as leaving one out."""

    input: Required[Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]]
    """A text, or token ids as they are; or a list of such inputs, each of which gets its own embedding, in order."""
    model: str | None
    """Ignored by an engine that has one model; repeated in the response."""
    encoding_format: Literal["float", "base64"] | None
    """Numbers, or the bytes of little-endian float32 in base64."""
    dimensions: Annotated[int, Field(ge=1)] | None
    """Keep only so many of the first numbers, and bring them to length 1 (Kusupati et al., 2022)."""
    request_id: Annotated[str, Field(min_length=1, max_length=256)] | None
    """Name of the call for ``abort()``; must not be in use. One is made up when left out."""
    timeout: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None
    """Seconds after which the call ends with ``RequestTimeoutError``, wherever it is."""
    extra_body: dict[str, Any] | None
    """More of these arguments, as OpenAI's client takes them."""
    user: str | None
    """Accepted for compatibility; not used."""


Arguments = TypeVar("Arguments", ChatArguments, CompletionArguments, EmbeddingArguments)


def check_arguments(kind: type[Arguments], arguments: Arguments) -> Arguments:
    """Return ``arguments`` without those that are None, with ``extra_body`` merged into them.

    Raises:
        InvalidRequestError: one is unknown, missing, of the wrong type or out of range; ``param`` names it.
    """
    checked = check_fields(kind, _merged(dict(arguments)))
    _refuse_unsupported(checked)
    return cast(Arguments, checked)


def check_fields(kind: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``fields`` that are not None.

    Args:
        kind: a TypedDict that says which there may be.

    Raises:
        InvalidRequestError: one is unknown, missing, of the wrong type or out of range; ``param`` names it.
    """
    checked: dict[str, Any] = validate(kind, fields)
    return {name: value for name, value in checked.items() if value is not None}


def _merged(arguments: dict[str, Any]) -> dict[str, Any]:
    extra = arguments.pop("extra_body", None)
    if extra is None:
        return arguments
    if not isinstance(extra, dict):
        raise InvalidRequestError("extra_body: must be an object", param="extra_body")
    for name in extra:
        if arguments.get(name) is not None:
            raise InvalidRequestError(f"{name!r} is given twice, also in extra_body", param=name)
    return {**arguments, **extra}


def _refuse_unsupported(arguments: dict[str, Any]) -> None:
    form = arguments.get("response_format", {"type": "text"})
    if form != {"type": "text"}:
        raise InvalidRequestError(
            f"response_format: {form.get('type')!r} is not supported in this version; accepted is 'text'",
            param="response_format",
        )
    choice = arguments.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise InvalidRequestError(
            "tool_choice: a forced tool call is not supported in this version; accepted are 'auto' and 'none'",
            param="tool_choice",
        )
    if arguments.get("top_logprobs") and not arguments.get("logprobs"):
        raise InvalidRequestError("top_logprobs needs logprobs=True", param="top_logprobs")
