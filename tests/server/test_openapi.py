"""The OpenAPI document is true: of what is taken, of what is refused, of what is answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import jsonschema
import pytest

from support.http_streams import ASK, CHAT, TEXT
from support.openai_schema import OpenAISchema, openai_schema
from support.server import RunningServer, serving
from windlass.config import EngineConfig
from windlass.protocol.arguments import ChatArguments, CompletionArguments
from windlass.server.guard import OPEN_PATHS
from windlass.server.openai_fields import CHAT as CHAT_RULES
from windlass.server.openai_fields import COMPLETIONS, OF_THE_LIBRARY
from windlass.server.served import ModelSpec

KEY = "sk-test"
BRIEF = ModelSpec("windlass-demo", EngineConfig(num_threads=2, max_single_sequence_length=48))
"""A demo model that does not talk long."""


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(BRIEF, api_keys=(KEY,)) as running:
        yield running


@pytest.fixture(scope="module")
def document(server: RunningServer) -> Any:
    return get(server, "/openapi.json")


def get(server: RunningServer, path: str) -> Any:
    return server.request("GET", path, headers={"x-api-key": KEY}).json


def post(server: RunningServer, path: str, body: Any) -> Any:
    return server.request("POST", path, body, {"x-api-key": KEY})


def schema_at(document: Any, path: str, status: int = 200, kind: str = "application/json") -> Any:
    content = document["paths"][path]["post"]["responses"][str(status)]["content"][kind]
    return content.get("schema") or content["itemSchema"]["properties"]["data"]["anyOf"][0]["contentSchema"]


def check(document: Any, schema: Any, value: Any) -> None:
    jsonschema.Draft202012Validator({**document, **schema}).validate(value)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_every_reference_leads_somewhere(document: Any) -> None:
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known
    assert "$defs" not in json.dumps(document)
    assert "HTTPValidationError" not in json.dumps(document)


def test_every_operation_says_how_it_may_fail(document: Any) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            assert {"200", "400", "401", "403", "408", "431", "500", "503"} <= responses.keys(), path
            assert "422" not in responses, path
            if "requestBody" in operation:
                assert {"404", "413", "415", "429"} <= responses.keys(), path
            assert operation.get("description"), path


def test_what_needs_a_key_says_so(document: Any) -> None:
    assert document["security"] == [{"bearer": []}, {"x-api-key": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert (operation.get("security") == []) == (path in OPEN_PATHS), path


def test_a_server_without_keys_asks_for_none() -> None:
    with serving() as server:
        document = server.request("GET", "/openapi.json").json
    assert "security" not in document
    assert "securitySchemes" not in document["components"]


@pytest.mark.parametrize(
    ("path", "kind", "required"), [(CHAT, ChatArguments, "messages"), (TEXT, CompletionArguments, "prompt")]
)
def test_every_field_of_a_body_is_described(document: Any, path: str, kind: type, required: str) -> None:
    reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    ignored = (CHAT_RULES if path == CHAT else COMPLETIONS).taken
    assert schema["properties"].keys() == get_type_hints(kind).keys() - OF_THE_LIBRARY | {"stream"} | ignored
    assert schema["required"] == [required]
    assert schema["additionalProperties"] is False
    for name, field in schema["properties"].items():
        assert len(field.get("description", field.get("anyOf", [{}])[0].get("$ref", ""))) > 10, name


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_the_example_is_answered_as_described(server: RunningServer, document: Any, path: str) -> None:
    example = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    answer = post(server, path, example)
    assert answer.status == 200
    check(document, schema_at(document, path), answer.json)
    *events, done = post(server, path, {**example, "stream": True}).events
    assert done == "[DONE]"
    for event in events:
        check(document, schema_at(document, path, kind="text/event-stream"), event)
    refused = post(server, path, {**example, "n": 1000})
    check(document, schema_at(document, path, 400), refused.json)


# OpenAI's own description of what is answered


@pytest.fixture(scope="module")
def openai(data_dir: Path) -> OpenAISchema:
    return openai_schema(data_dir)


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CHATS = {
    "plain": {},
    "choices": {"n": 2, "seed": 1, "temperature": 1},
    "logprobs": {"logprobs": True, "top_logprobs": 2, "max_tokens": 3},
    "no alternatives": {"logprobs": True, "max_tokens": 2},
    "cut off": {"max_tokens": 1},
    "tools": {"tools": [TOOL], "tool_choice": "auto"},
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_is_what_OpenAI_says(server: RunningServer, openai: OpenAISchema, name: str) -> None:
    answer = post(server, CHAT, {**ASK, **CHATS[name]})
    assert answer.status in (200, 400), answer.body
    if answer.status == 400:  # no room for the tool in this context
        openai.check("ErrorResponse", answer.json)
        return
    openai.check("CreateChatCompletionResponse", answer.json)
    for options in (None, {"include_usage": True}):
        *events, done = post(server, CHAT, {**ASK, **CHATS[name], "stream": True, "stream_options": options}).events
        assert done == "[DONE]"
        for event in events:
            openai.check("CreateChatCompletionStreamResponse", event)


TEXTS = {
    "plain": {},
    "prompts": {"prompt": ["a", "b"], "n": 2},
    "ids": {"prompt": [1, 2, 3]},
    "logprobs": {"logprobs": 2},
    "echo": {"echo": True, "suffix": "!"},
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_completion_is_what_OpenAI_says(server: RunningServer, openai: OpenAISchema, name: str) -> None:
    body = {"prompt": "The capital", "max_tokens": 3, **TEXTS[name]}
    answer = post(server, TEXT, body)
    assert answer.status == 200, answer.body
    openai.check("CreateCompletionResponse", answer.json)
    *events, done = post(server, TEXT, {**body, "stream": True, "stream_options": {"include_usage": True}}).events
    assert done == "[DONE]"
    for event in events[:-1]:
        openai.check("CreateCompletionResponse", _as_a_whole(event))
    openai.check("CreateCompletionResponse", events[-1])


def _as_a_whole(event: dict[str, Any]) -> dict[str, Any]:
    """OpenAI describes whole answers only, which always have a reason; its streams have null until the last."""
    choices = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in event["choices"]]
    return {**event, "choices": choices}


def test_models_and_errors_are_what_OpenAI_says(server: RunningServer, openai: OpenAISchema) -> None:
    openai.check("ListModelsResponse", get(server, "/v1/models"))
    openai.check("Model", get(server, "/v1/models/windlass-demo"))
    for path in ("/nowhere", "/v1/models/none", CHAT):
        openai.check("ErrorResponse", get(server, path))
    for body in ({}, [], {**ASK, "n": 0}, {**ASK, "model": "none"}, b"{", b"\xff"):
        openai.check("ErrorResponse", post(server, CHAT, body).json)
    openai.check("ErrorResponse", server.request("GET", "/v1/models").json)


# Schemathesis: whatever the document allows, and much that it does not

CONFIGURATION = """
base-url = "{url}"
seed = 20
max-failures = 3
suppress-health-check = ["all"]
color = false

[auth.openapi.bearer]
bearer = "{key}"

[generation]
max-examples = {examples}
database = "none"

[phases.stateful]
enabled = false

# What two fields may be together, a schema does not say; that data are refused which it forbids, is checked.
[checks.positive_data_acceptance]
enabled = false

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 504]

[parameters]
"path.name" = "windlass-demo"
"""


@pytest.mark.timeout(400)
def test_it_keeps_to_its_document(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION.format(url=server.url, key=KEY, examples=5))
    (tmp_path / "openapi.json").write_text(json.dumps(get(server, "/openapi.json")))
    run = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )
    print(run.stdout[-20_000:], run.stderr[-2000:])
    assert run.returncode == 0
    assert get(server, "/readyz")["status"] == "ok"
