"""Dictionaries from outside against the types they must have, with refusals that name what is wrong."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from windlass.errors import InvalidRequestError

Kind = TypeVar("Kind")

_MAX_NAME = 100  # of an unknown field, which can be of any length

_MAX_ENTRIES = 1024

_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def validate(kind: type[Kind], value: object, *, at: str | None = None) -> Kind:
    """Return ``value`` as a dictionary of the type ``kind``; numbers and text are not taken for one another.

    A large value must not take long, however wrong it is, and pydantic gathers all errors and takes microseconds for
    each: so the lists of ``kind`` are to be bounded or ``fail_fast``, and objects are looked at before.

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
    if at is None and isinstance(value, dict):
        _refuse_crowds(kind, value)
    try:
        return cast(Kind, _ADAPTERS[kind].validate_python(value, strict=True))
    except ValidationError as error:
        raise _refusal(error, at) from None


def _refuse_crowds(kind: type, value: dict[Any, Any]) -> None:
    """Refuse unknown fields, and fields with more entries than are ever right, by the first of them."""
    for name, item in value.items():
        if name not in kind.__annotations__:
            shown, accepted = str(name)[:_MAX_NAME], ", ".join(sorted(kind.__annotations__))
            raise InvalidRequestError(
                f"unknown argument {shown!r}; accepted are {accepted}", param=shown, code="unknown_parameter"
            )
        if isinstance(item, dict) and len(item) > _MAX_ENTRIES:
            raise InvalidRequestError(f"{name}: has {len(item)} entries; most are {_MAX_ENTRIES}", param=name)


def _refusal(error: ValidationError, at: str | None) -> InvalidRequestError:
    first, *others = _closest(error.errors(include_url=False, include_input=False))
    way = first["loc"]
    reason = " or ".join(dict.fromkeys(one["msg"].removeprefix("Value error, ") for one in (first, *others)))
    if at is not None:
        return InvalidRequestError(f"{at}{''.join(map(_step, way))}: {reason}", param=at)
    param = str(way[0]) if way else None
    if first["type"] == "missing" and len(way) == 1:
        return InvalidRequestError(f"{param!r} is required", param=param, code="missing_required_parameter")
    return InvalidRequestError(f"{param}{''.join(map(_step, way[1:]))}: {reason}", param=param)


def _closest(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Of the errors in the first field those which say most: of a union, the members that came the furthest."""

    def distance(one: ErrorDetails) -> tuple[int, bool]:
        return len(one["loc"]), not one["type"].endswith("_type")

    errors = [one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]]
    furthest = max(map(distance, errors))
    return [one for one in errors if distance(one) == furthest]


def _step(part: int | str) -> str:
    """One step of the way to what is wrong. The names that pydantic gives to the members of a union say nothing."""
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if part.isidentifier() and part != "str" else ""
