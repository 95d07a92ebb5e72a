"""Checking the arguments of a call: at once where they are the plain ones, by ``protocol/arguments.py`` where not.

So a first answer need not wait for pydantic, which takes longer to import, and to make its types, than the weights take
to load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from windlass.protocol.plain import PLAIN_CHAT, PLAIN_COMPLETION, are_plain

if TYPE_CHECKING:
    from windlass.protocol.arguments import ChatArguments, CompletionArguments

Arguments = TypeVar("Arguments", "ChatArguments", "CompletionArguments")


def check_chat_arguments(arguments: ChatArguments) -> ChatArguments:
    """As ``check_arguments(ChatArguments, arguments)``."""
    if are_plain(arguments, PLAIN_CHAT, "messages"):
        return _own(arguments)
    from windlass.protocol.arguments import ChatArguments, check_arguments

    return check_arguments(ChatArguments, arguments)


def check_completion_arguments(arguments: CompletionArguments) -> CompletionArguments:
    """As ``check_arguments(CompletionArguments, arguments)``."""
    if are_plain(arguments, PLAIN_COMPLETION, "prompt"):
        return _own(arguments)
    from windlass.protocol.arguments import CompletionArguments, check_arguments

    return check_arguments(CompletionArguments, arguments)


def _own(arguments: Arguments) -> Arguments:
    """A copy as the full check makes it: of lists and switches as well, which the caller may go on to change."""
    own: dict[str, Any] = {**arguments}
    if "extra_body" in own:
        own["debug_config"] = {**own.pop("extra_body")["debug_config"]}
    if "temperature" in own:
        own["temperature"] = float(own["temperature"])
    for name in ("prompt", "messages"):
        if type(own.get(name)) is list:
            own[name] = list(own[name])
    return cast("Arguments", own)
