"""Dictionaries from outside against the types they must have, with refusals that name what is wrong."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from windlass.errors import InvalidRequestError

Kind = TypeVar("Kind")

_MAX_NAME = 100  # of an unknown field, which can be of any length

_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def validate(kind: type[Kind], value: object, *, at: str | None = None) -> Kind:
    """Return ``value`` as a dictionary of the type ``kind``; numbers and text are not taken for one another.

    Args:
        kind: a TypedDict.
        value: a dictionary, as JSON gave it.
        at: where in the request it stands, such as ``input[3]``; None for the request itself.

    Raises:
        InvalidRequestError: a field is unknown, missing, of the wrong type or out of range; ``param`` names it, or is
            ``at`` where that is given.
    """
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    try:
        return cast(Kind, _ADAPTERS[kind].validate_python(value, strict=True))
    except ValidationError as error:
        raise _refusal(error, kind, at) from None


def _refusal(error: ValidationError, kind: type, at: str | None) -> InvalidRequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    way, reason = first["loc"], first["msg"].removeprefix("Value error, ")
    if at is not None:
        return InvalidRequestError(f"{at}{''.join(map(_step, way))}: {reason}", param=at)
    param = str(way[0])[:_MAX_NAME] if way else None
    if first["type"] == "extra_forbidden" and len(way) == 1:
        accepted = ", ".join(sorted(kind.__annotations__))
        return InvalidRequestError(
            f"unknown argument {param!r}; accepted are {accepted}", param=param, code="unknown_parameter"
        )
    if first["type"] == "missing" and len(way) == 1:
        return InvalidRequestError(f"{param!r} is required", param=param, code="missing_required_parameter")
    return InvalidRequestError(f"{param}{''.join(map(_step, way[1:]))}: {reason}", param=param)


def _step(part: int | str) -> str:
    """One step of the way to what is wrong. The names that pydantic gives to the members of a union say nothing."""
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if part.isidentifier() and part != "str" else ""
