"""Chat and text completions over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.lifecycle import ANSWER, QUESTION
from support.server import RunningServer, serving


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving() as running:
        yield running


def test_a_whole_answer(server: RunningServer) -> None:
    answer = server.chat(QUESTION, temperature=0)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["object"] == "chat.completion"
    assert answer.json["model"] == "windlass-demo"
    message = answer.json["choices"][0]["message"]
    assert message == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert answer.json["usage"]["completion_tokens"] > 0


def test_a_stream_ends_with_a_finish_and_done(server: RunningServer) -> None:
    answer = server.chat(QUESTION, temperature=0, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = answer.events
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == ANSWER
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] > 0


def test_a_text_is_continued(server: RunningServer) -> None:
    answer = server.request("POST", "/v1/completions", {"prompt": "The capital", "max_tokens": 4, "temperature": 0})
    assert answer.status == 200
    assert answer.json["choices"][0]["text"]
    assert answer.json["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found", "model"),
        ({"temperature": 9}, 400, "invalid_value", "temperature"),
        ({"no_such": 1}, 400, "unknown_parameter", "no_such"),
        ({"stream": "yes"}, 400, "invalid_value", "stream"),
        ({"request_id": "mine"}, 400, "unknown_parameter", "request_id"),
        ({"debug_config": {"ignore_eos": True}}, 400, "debug_disabled", "debug_config"),
    ],
)
def test_a_bad_request_is_refused_by_name(
    server: RunningServer, fields: dict[str, object], status: int, code: str, param: str
) -> None:
    answer = server.chat(QUESTION, **fields)
    assert answer.status == status
    error = answer.json["error"]
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
    assert error["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("GET", "/nowhere", None, {}, 404, "not_found"),
        ("GET", "/v1/chat/completions", None, {}, 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", b"{", {}, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"[]", {}, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b'{"messages": NaN}', {}, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ("POST", "/v1/chat/completions", b" " * (4 << 20) + b"{}", {}, 413, "request_too_large"),
        ("GET", "/livez", None, {"Host": "evil.example"}, 403, "host_not_allowed"),
    ],
)
def test_every_error_has_the_same_shape(
    server: RunningServer,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    answer = server.request(method, path, body, headers)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"error"}
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert answer.json["error"]["code"] == code


def test_models_are_listed(server: RunningServer) -> None:
    listed = server.request("GET", "/v1/models").json
    assert [model["id"] for model in listed["data"]] == ["windlass-demo"]
    assert server.request("GET", "/v1/models/windlass-demo").json == listed["data"][0]
    assert server.request("GET", "/v1/models/none").json["error"]["code"] == "model_not_found"


def test_a_key_opens_every_route_but_the_probes() -> None:
    with serving(api_keys=("sk-1", "sk-2")) as server:
        assert server.request("GET", "/livez").status == 200
        for headers in ({}, {"Authorization": "Bearer sk-3"}, {"Authorization": "sk-1"}, {"x-api-key": ""}):
            refused = server.request("GET", "/v1/models", headers=headers)
            assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")
        for headers in ({"Authorization": "Bearer sk-2"}, {"x-api-key": "sk-1"}):
            assert server.request("GET", "/v1/models", headers=headers).status == 200
