"""Checking the arguments of a call: at once where they are the plain ones, by ``protocol/arguments.py`` where not.

The rules are those of ``protocol/arguments.py``. What is accepted here is accepted there, with the same result, and
whatever else there may be is left to it. So a first answer need not wait for pydantic, which takes longer to import,
and to make its types, than the weights take to load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from windlass.protocol.arguments import ChatArguments, CompletionArguments

Arguments = TypeVar("Arguments", "ChatArguments", "CompletionArguments")

ROLES = ("system", "developer", "user", "assistant", "tool")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_prompt(value: Any) -> bool:
    if type(value) is str:
        return True
    return type(value) is list and bool(value) and all(type(token_id) is int and token_id >= 0 for token_id in value)


def _is_conversation(value: Any) -> bool:
    return type(value) is list and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    return type(value) is dict and value.get("role") in ROLES and all(type(key) is str for key in value)


_PLAIN: dict[str, Callable[[Any], bool]] = {
    "max_tokens": _is_count,
    "temperature": lambda value: type(value) in (int, float) and 0 <= value <= 2,
    "seed": lambda value: type(value) is int and -(2**63) <= value < 2**63,
}
_PLAIN_CHAT = {**_PLAIN, "messages": _is_conversation, "max_completion_tokens": _is_count}
_PLAIN_COMPLETION = {**_PLAIN, "prompt": _is_prompt}


def check_chat_arguments(arguments: ChatArguments) -> ChatArguments:
    """As ``check_arguments(ChatArguments, arguments)``."""
    if _are_plain(cast("dict[str, Any]", arguments), _PLAIN_CHAT, "messages"):
        return _with_floats(arguments)
    from windlass.protocol.arguments import ChatArguments, check_arguments

    return check_arguments(ChatArguments, arguments)


def check_completion_arguments(arguments: CompletionArguments) -> CompletionArguments:
    """As ``check_arguments(CompletionArguments, arguments)``."""
    if _are_plain(cast("dict[str, Any]", arguments), _PLAIN_COMPLETION, "prompt"):
        return _with_floats(arguments)
    from windlass.protocol.arguments import CompletionArguments, check_arguments

    return check_arguments(CompletionArguments, arguments)


def _with_floats(arguments: Arguments) -> Arguments:
    temperature = arguments.get("temperature")
    return arguments if temperature is None else cast("Arguments", {**arguments, "temperature": float(temperature)})


def _are_plain(arguments: dict[str, Any], tests: dict[str, Callable[[Any], bool]], required: str) -> bool:
    return required in arguments and all(name in tests and tests[name](value) for name, value in arguments.items())
