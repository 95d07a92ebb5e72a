"""What ``create()`` takes: OpenAI's arguments, written once, for the sync and async engines and the server.

Each dictionary type below is both the static signature (``**arguments: Unpack[ChatArguments]``) and, through pydantic,
the check at run time: unknown names and values out of range are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, cast

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import Required, TypedDict

from windlass.errors import InvalidRequestError

MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_CHOICES = 16

_STRICT = ConfigDict(extra="forbid")

ROLES = ("system", "developer", "user", "assistant", "tool")
TokenId = Annotated[int, Field(ge=0)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_BYTES)]


def _check_role(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("role") not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}, not {message.get('role')!r}")
    return message


Message = Annotated[dict[str, Any], AfterValidator(_check_role)]


@with_config(_STRICT)
class StreamOptions(TypedDict, total=False):
    """What a stream carries besides text."""

    include_usage: bool
    """End with one more chunk that has no choices but the usage of the call."""


@with_config(_STRICT)
class CommonArguments(TypedDict, total=False):
    """Arguments of chat and text completions alike; None means the same as leaving one out."""

    model: str | None
    """Ignored by an engine that has one model; repeated in the response."""
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
    repetition_penalty: Annotated[float, Field(gt=0.0, le=10.0)] | None
    """Divides the positive logits of tokens in prompt and answer, and multiplies the negative ones."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None
    """Number of independent choices."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None
    """The same request with the same seed gives the same tokens; a fresh seed is drawn when left out."""
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None
    """Strings that end the answer; they are not part of it."""
    stream_options: StreamOptions | None
    request_id: Annotated[str, Field(min_length=1, max_length=256)] | None
    """Name of the call for ``abort()``; must not be in use. One is made up when left out."""
    user: str | None
    """Accepted for compatibility; not used."""


@with_config(_STRICT)
class ChatArguments(CommonArguments, total=False):
    """Arguments of ``chat.completions.create``."""

    messages: Required[Annotated[list[Message], Field(min_length=1)]]
    """The conversation, OpenAI's message objects; the answer's own message object may be appended to it as it is."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None
    """OpenAI's newer name of ``max_tokens``."""
    tools: list[dict[str, Any]] | None
    """Function tools the template presents to the model."""


@with_config(_STRICT)
class CompletionArguments(CommonArguments, total=False):
    """Arguments of ``completions.create``."""

    prompt: Required[str | Annotated[list[TokenId], Field(min_length=1)]]
    """Text, or token ids as they are."""


Arguments = TypeVar("Arguments", ChatArguments, CompletionArguments)

_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def check_arguments(kind: type[Arguments], arguments: Arguments) -> Arguments:
    """Return ``arguments`` without those that are None.

    Raises:
        InvalidRequestError: one is unknown, missing, of the wrong type or out of range; ``param`` names it.
    """
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    try:
        checked = _ADAPTERS[kind].validate_python(arguments, strict=True)
    except ValidationError as error:
        raise _refusal(error, kind) from None
    return cast(Arguments, {name: value for name, value in checked.items() if value is not None})


def _step(part: int | str) -> str:
    """One step of the way to what is wrong. The names that pydantic gives to the members of a union say nothing."""
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if part.isidentifier() and part != "str" else ""


def _refusal(error: ValidationError, kind: type) -> InvalidRequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    param = str(first["loc"][0]) if first["loc"] else None
    where = "".join(_step(part) for part in first["loc"][1:])
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        accepted = ", ".join(sorted(kind.__annotations__))
        return InvalidRequestError(
            f"unknown argument {param!r}; accepted are {accepted}", param=param, code="unknown_parameter"
        )
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return InvalidRequestError(f"{param!r} is required", param=param, code="missing_required_parameter")
    return InvalidRequestError(f"{param}{where}: {first['msg'].removeprefix('Value error, ')}", param=param)
