"""Fields of OpenAI's bodies that the engine does not know: which are taken and ignored, and which are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from windlass.server.api_errors import ApiError

OF_THE_LIBRARY = frozenset({"extra_body", "request_id", "self"})
"""Arguments of ``create()`` that make no sense in a body."""

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FieldRules:
    """What becomes of fields that the engine's ``create()`` does not take; null is the same as leaving one out.

    Attributes:
        ignored: taken, and of no effect: they are about accounts, storage and caches at OpenAI, or ask for a style.
        refused: those that would change the answer, and why that is not to be had.
        checked: those that are taken as long as they ask for what is done anyway: a test of the body, and what to say.
    """

    ignored: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    checked: Mapping[str, tuple[Callable[[Body], bool], str]] = field(default_factory=dict)

    @property
    def taken(self) -> frozenset[str]:
        """Fields that a body may have."""
        return self.ignored | self.checked.keys()

    def apply(self, body: Body) -> Body:
        """Return the fields that are for the engine.

        Raises:
            ApiError: 400, a field is refused.
        """
        given = {name: value for name, value in body.items() if value is not None}
        for name in given:
            if name in OF_THE_LIBRARY:
                raise ApiError(400, f"unknown argument {name!r}", code="unknown_parameter", param=name)
            if name in self.refused:
                raise ApiError(400, f"{name}: {self.refused[name]}", code="unsupported_parameter", param=name)
            if name in self.checked and not self.checked[name][0](given):
                raise ApiError(400, f"{name}: {self.checked[name][1]}", code="unsupported_value", param=name)
        options = given.get("stream_options")
        if isinstance(options, dict):
            # Padding against eavesdroppers who watch the sizes of packets; TLS is for whoever stands in front.
            given["stream_options"] = {name: value for name, value in options.items() if name != "include_obfuscation"}
        return {name: value for name, value in given.items() if name not in self.ignored and name not in self.checked}


CHAT = FieldRules(
    ignored=frozenset(
        {
            "metadata",
            "prediction",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "safety_identifier",
            "service_tier",
            "store",
            "verbosity",
        }
    ),
    refused={
        "audio": "the models of this server have no voice",
        "function_call": "is OpenAI's former name of tool_choice; use that",
        "functions": "is OpenAI's former name of tools; use that",
        "moderation": "this server does not moderate",
        "web_search_options": "this server does not search the web",
    },
    checked={
        "modalities": (lambda body: body["modalities"] == ["text"], "answers are text: only ['text'] is accepted")
    },
)

COMPLETIONS = FieldRules(
    checked={
        "best_of": (
            lambda body: body["best_of"] == (body.get("n") or 1),
            "all n choices are returned: it must equal n, which is 1 by default",
        )
    }
)
