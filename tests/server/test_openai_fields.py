"""Every field of OpenAI's bodies is decided: taken by the engine, ignored, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.lifecycle import ANSWER, QUESTION
from support.openai_schema import openai_schema
from support.server import RunningServer, serving
from windlass.protocol.arguments import ChatArguments, CompletionArguments
from windlass.server.openai_fields import CHAT, COMPLETIONS, OF_THE_LIBRARY, FieldRules

MESSAGES = [{"role": "user", "content": QUESTION}]
IGNORED: dict[str, Any] = {
    "metadata": {"a": "b"},
    "prediction": {"type": "content", "content": "Paris"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"ttl": "30m"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "auto",
    "store": True,
    "verbosity": "low",
}
REFUSED: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "mp3"},
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "moderation": {"model": "m"},
    "web_search_options": {},
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving() as running:
        yield running


@pytest.mark.parametrize(
    ("schema", "arguments", "rules"),
    [
        ("CreateChatCompletionRequest", ChatArguments, CHAT),
        ("CreateCompletionRequest", CompletionArguments, COMPLETIONS),
    ],
)
def test_no_field_is_forgotten(data_dir: Path, schema: str, arguments: Any, rules: FieldRules) -> None:
    names = set(arguments.__annotations__) | arguments.__required_keys__ | arguments.__optional_keys__
    decided = (names - OF_THE_LIBRARY) | rules.taken | rules.refused.keys() | {"stream"}
    assert openai_schema(data_dir).fields(schema) - decided == set()
    # What the engine takes by itself needs no rule.
    assert not names & (rules.taken | rules.refused.keys())


def test_all_rules_are_tested_here() -> None:
    assert (IGNORED.keys(), REFUSED.keys()) == (CHAT.ignored, CHAT.refused.keys())
    assert (set(CHAT.checked), set(COMPLETIONS.checked)) == ({"modalities"}, {"best_of"})
    assert not COMPLETIONS.ignored | COMPLETIONS.refused.keys()


def test_what_is_ignored_changes_nothing(server: RunningServer) -> None:
    more = {"modalities": ["text"], "logit_bias": None, "stop": None, "functions": None, "n": 1, "user": "u"}
    answer = server.chat(QUESTION, temperature=0, **IGNORED, **more)
    assert answer.status == 200, answer.json
    assert answer.json["choices"][0]["message"]["content"] == ANSWER
    stream = server.chat(
        QUESTION, temperature=0, stream=True, stream_options={"include_obfuscation": False, "include_usage": True}
    )
    assert stream.events[-2]["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_answer_is_refused(server: RunningServer, name: str) -> None:
    refused = server.chat(QUESTION, **{name: REFUSED[name]})
    assert refused.status == 400
    error = refused.json["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert error["message"] == f"{name}: {CHAT.refused[name]}"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_value"),
        ({"modalities": "text"}, "modalities", "unsupported_value"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value"),
        ({"stream_options": {"include_usage": True, "no_such": 1}}, "stream_options", "invalid_value"),
        ({"extra_body": {}}, "extra_body", "unknown_parameter"),
        ({"n": 17}, "n", "invalid_value"),
        ({"response_format": {"type": "json_object"}}, "response_format", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"best_of": 1}, "best_of", "unknown_parameter"),
    ],
)
def test_values_that_are_not_to_be_had(server: RunningServer, fields: dict[str, Any], param: str, code: str) -> None:
    refused = server.chat(QUESTION, **fields)
    assert (refused.status, refused.json["error"]["param"], refused.json["error"]["code"]) == (400, param, code)


@pytest.mark.parametrize(
    ("fields", "status"), [({"best_of": 1}, 200), ({"best_of": 2, "n": 2}, 200), ({"best_of": 2}, 400)]
)
def test_best_of_must_be_all(server: RunningServer, fields: dict[str, Any], status: int) -> None:
    answer = server.request("POST", "/v1/completions", {"prompt": "The", "max_tokens": 2, **fields})
    assert answer.status == status
    if status == 200:
        assert len(answer.json["choices"]) == fields["best_of"]
    else:
        assert answer.json["error"]["param"] == "best_of"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit(server: RunningServer, name: str) -> None:
    answer = server.chat(QUESTION, **{name: 2})
    assert answer.json["usage"]["completion_tokens"] == 2
    assert answer.json["choices"][0]["finish_reason"] == "length"
