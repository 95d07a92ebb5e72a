"""Arguments that are right at a glance: the plain ones of most calls, checked without pydantic.

The rules are those of ``protocol/arguments.py``: what is accepted here is accepted there, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
SWITCHES = ("ignore_eos", "pinned_system_prompt")
"""Of ``debug_config``."""


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


def _are_switches(value: Any) -> bool:
    return type(value) is dict and all(name in SWITCHES and type(on) is bool for name, on in value.items())


def _is_extra(value: Any) -> bool:
    """Whether this is an ``extra_body`` with MLC-LLM's switches and nothing else."""
    return type(value) is dict and value.keys() == {"debug_config"} and _are_switches(value["debug_config"])


_PLAIN: dict[str, Callable[[Any], bool]] = {
    "max_tokens": _is_count,
    "temperature": lambda value: type(value) in (int, float) and 0 <= value <= 2,
    "seed": lambda value: type(value) is int and -(2**63) <= value < 2**63,
    "extra_body": _is_extra,
}
PLAIN_CHAT: Mapping[str, Callable[[Any], bool]] = {
    **_PLAIN,
    "messages": _is_conversation,
    "max_completion_tokens": _is_count,
}
PLAIN_COMPLETION: Mapping[str, Callable[[Any], bool]] = {**_PLAIN, "prompt": _is_prompt}


def are_plain(arguments: Mapping[str, object], tests: Mapping[str, Callable[[Any], bool]], required: str) -> bool:
    """Whether every argument passes its test, and ``required`` is one of them."""
    return required in arguments and all(name in tests and tests[name](value) for name, value in arguments.items())
