"""``/v1/messages`` over HTTP: whole answers, streams, tools, refusals, in the shapes that Anthropic's clients read."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from support.lifecycle import ANSWER, LIMIT, LONG, QUESTION, Gate, idle_and_whole, slow_down, wait_for
from support.server import Answer, RunningServer, serving
from windlass import EngineConfig
from windlass.server.served import ModelSpec

PATH = "/v1/messages"
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
WEATHER_QUESTION = {"role": "user", "content": "What is the weather in Paris?"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving() as running:
        yield running


def ask(server: RunningServer, text: str = QUESTION, path: str = PATH, **fields: Any) -> Answer:
    body = {"max_tokens": 50, "temperature": 0, "messages": [{"role": "user", "content": text}], **fields}
    return server.request("POST", path, {name: value for name, value in body.items() if value is not ...})


def test_a_whole_message(server: RunningServer) -> None:
    answer = ask(server)
    assert answer.status == 200
    message = answer.json
    assert message.pop("id").startswith("msg_")
    usage = message.pop("usage")
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] > usage["output_tokens"] > 0
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "windlass-demo",
        "content": [{"type": "text", "text": ANSWER}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }


def test_a_stream_says_the_same(server: RunningServer) -> None:
    whole = ask(server).json
    answer = ask(server, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    start, block, *deltas, block_stop, end, stop = answer.events
    names = [line[7:] for line in answer.body.decode().split("\n") if line.startswith("event: ")]
    assert names == [event["type"] for event in answer.events]
    assert start["type"] == "message_start"
    assert start["message"] | {"id": whole["id"], "usage": whole["usage"]} == whole | {
        "content": [],
        "stop_reason": None,
    }
    usage = start["message"]["usage"]
    assert usage["input_tokens"] == whole["usage"]["input_tokens"] + whole["usage"]["cache_read_input_tokens"]
    assert block == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert "".join(delta["delta"]["text"] for delta in deltas) == ANSWER
    assert block_stop == {"type": "content_block_stop", "index": 0}
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    assert stop == {"type": "message_stop"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "text", "reason", "sequence"),
    [
        ({"max_tokens": 2}, "The capital", "max_tokens", None),
        ({"stop_sequences": [" Paris", "xyz"]}, ANSWER.partition(" Paris")[0], "stop_sequence", " Paris"),
        ({"stop_sequences": ["xyz"]}, ANSWER, "end_turn", None),
        ({"stop_sequences": []}, ANSWER, "end_turn", None),
    ],
)
def test_why_an_answer_ended(
    server: RunningServer, fields: dict[str, Any], text: str, reason: str, sequence: str | None, *, stream: bool
) -> None:
    answer = ask(server, stream=stream, **fields)
    if stream:
        ended = next(event["delta"] for event in answer.events if event["type"] == "message_delta")
        said = "".join(e["delta"]["text"] for e in answer.events if e["type"] == "content_block_delta")
    else:
        ended = answer.json
        said = answer.json["content"][0]["text"]
    assert (said, ended["stop_reason"], ended["stop_sequence"]) == (text, reason, sequence)


def test_an_answer_that_fills_the_context(server: RunningServer) -> None:
    limit = server.engine.engine_config.max_single_sequence_length
    assert limit is not None
    words = 0
    while (left := limit - num_tokens(server, fill(words))) > 4:
        words += max(1, (left - 4) // 2)
    assert left > 0
    answer = ask(server, fill(words), max_tokens=100)
    assert answer.json["stop_reason"] == "model_context_window_exceeded"
    assert answer.json["usage"]["output_tokens"] == left


def fill(words: int) -> str:
    return f"{'word ' * words}{QUESTION}"


def num_tokens(server: RunningServer, text: str) -> int:
    body = {"messages": [{"role": "user", "content": text}]}
    return int(server.request("POST", f"{PATH}/count_tokens", body).json["input_tokens"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_its_result_and_the_answer(server: RunningServer, *, stream: bool) -> None:
    answer = ask(server, messages=[WEATHER_QUESTION], tools=[WEATHER], stream=stream)
    if stream:
        start, *deltas, _ = [event for event in answer.events if event["type"].startswith("content_block")]
        call = start["content_block"]
        assert call["input"] == {}
        call["input"] = json.loads("".join(delta["delta"]["partial_json"] for delta in deltas))
        reason = next(event["delta"]["stop_reason"] for event in answer.events if event["type"] == "message_delta")
    else:
        [call] = answer.json["content"]
        reason = answer.json["stop_reason"]
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "get_weather", {"city": "Paris"})
    assert reason == "tool_use"
    result = {
        "type": "tool_result",
        "tool_use_id": call["id"],
        "content": [{"type": "text", "text": '{"weather": "rainy"}'}],
    }
    conversation = [
        WEATHER_QUESTION,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    answer = ask(server, messages=conversation, tools=[WEATHER], tool_choice={"type": "auto"})
    assert answer.json["content"] == [{"type": "text", "text": "The weather in Paris is rainy."}]


def test_what_claude_code_sends_is_taken(server: RunningServer) -> None:
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    texts = ["x-anthropic-billing-header: cc_version=2.1; cch=fa690;", "You are an agent.", "# Tools"]
    answer = ask(
        server,
        path=f"{PATH}?beta=true",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder/>"},
                    {"type": "text", "text": QUESTION, **cached},
                ],
            }
        ],
        system=[{"type": "text", "text": text, **cached} for text in texts],
        tools=[{**WEATHER, "eager_input_streaming": True, "strict": False, **cached}],
        metadata={"user_id": "user_1"},
        thinking={"type": "adaptive"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "medium"},
        max_tokens=32000,
        temperature=1,
        stream=True,
    )
    assert answer.status == 200
    assert answer.events[-1] == {"type": "message_stop"}


def test_tokens_are_counted_as_the_model_gets_them(server: RunningServer) -> None:
    for fields in (
        {"messages": [WEATHER_QUESTION]},
        {"messages": [WEATHER_QUESTION], "tools": [WEATHER], "system": [{"type": "text", "text": "Be brief."}]},
        {"messages": [WEATHER_QUESTION], "tools": [WEATHER], "tool_choice": {"type": "none"}},
    ):
        counted = server.request("POST", f"{PATH}/count_tokens", fields)
        usage = ask(server, **{"max_tokens": 1, **fields}).json["usage"]
        assert counted.status == 200
        assert counted.json == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


@pytest.mark.parametrize(
    ("fields", "status", "kind", "words"),
    [
        ({"model": "claude-9"}, 404, "not_found_error", "claude-9"),
        ({"max_tokens": ...}, 400, "invalid_request_error", "max_tokens"),
        ({"no_such": 1}, 400, "invalid_request_error", "no_such"),
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "user", "content": "x " * 20000}]}, 400, "invalid_request_error", "context"),
        ({"tool_choice": {"type": "any"}, "tools": [WEATHER]}, 400, "invalid_request_error", "tool_choice"),
        ({"messages": [{"role": "user", "content": "y" * (4 << 20)}]}, 413, "request_too_large", "larger"),
    ],
)
def test_a_bad_request_is_refused_by_name(
    server: RunningServer, fields: dict[str, Any], status: int, kind: str, words: str
) -> None:
    answer = ask(server, **fields)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json
    assert set(error) == {"type", "error", "request_id"}
    assert error["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    assert (error["type"], error["error"]["type"]) == ("error", kind)
    assert words in error["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "kind"),
    [
        ("GET", PATH, None, {}, 405, "invalid_request_error"),
        ("POST", f"{PATH}/batches", None, {}, 404, "not_found_error"),
        ("POST", PATH, b"{", {}, 400, "invalid_request_error"),
        ("POST", f"{PATH}/count_tokens", b"{}", {"Content-Type": "text/plain"}, 415, "invalid_request_error"),
        ("POST", PATH, b"{}", {"Host": "evil.example"}, 403, "permission_error"),
    ],
)
def test_every_error_has_the_same_shape(
    server: RunningServer, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, kind: str
) -> None:
    answer = server.request(method, path, body, headers)
    assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (status, "error", kind)


def test_either_header_carries_the_key() -> None:
    body = {"max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    with serving(api_keys=("sk-1",)) as server:
        for headers in ({"Authorization": "Bearer sk-1"}, {"x-api-key": "sk-1", "anthropic-version": "2023-06-01"}):
            assert server.request("POST", PATH, body, headers).status == 200
        refused = server.request("POST", PATH, body, {"x-api-key": "sk-2"})
        assert (refused.status, refused.json["error"]["type"]) == (401, "authentication_error")
        server.engine.terminate()
        gone = server.request("POST", PATH, body, {"x-api-key": "sk-1"})
        assert (gone.status, gone.json["error"]["type"]) == (503, "overloaded_error")
        assert "retry-after" in gone.headers


def test_a_stream_that_is_cut_ends_with_an_error() -> None:
    with serving() as server:
        slow_down(server.engine, 0.03)
        response = begin_a_story(server)
        read = b""
        while b"text_delta" not in read:
            read += response.readline()
        server.stop()
        server.stop()
        read += response.read()
    events = Answer(200, {}, read).events
    assert events[-1]["type"] == "error"
    assert events[-1]["request_id"] == response.headers["request-id"]
    assert events[-1]["error"] == {"type": "overloaded_error", "message": "the server is shutting down"}
    assert "message_stop" not in [event["type"] for event in events]


def test_a_client_that_leaves_frees_its_request() -> None:
    with serving() as server:
        slow_down(server.engine, 0.03)
        response = begin_a_story(server)
        while b"text_delta" not in response.readline():
            pass
        response.close()
        assert idle_and_whole(server.engine)
        assert server.engine._metrics().requests_aborted["caller"] == 1


def test_who_comes_when_too_many_wait_is_told_when_to_try_again() -> None:
    config = EngineConfig(num_threads=2, max_num_sequence=1, max_waiting_requests=1)
    with serving(ModelSpec("windlass-demo", config)) as server:
        gate = Gate(server.engine)
        gate.shut()
        with closing(send_a_story(server)):
            assert gate.held.wait(LIMIT)
            with closing(send_a_story(server)):
                assert wait_for(lambda: server.engine._metrics().num_requests_waiting == 1)
                refused = ask(server)
            gate.open.set()
    assert (refused.status, refused.json["error"]["type"]) == (429, "rate_limit_error")
    assert int(refused.headers["retry-after"]) >= 1


def send_a_story(server: RunningServer) -> http.client.HTTPConnection:
    """A connection on which a stream was asked for."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    body = {"max_tokens": 500, "temperature": 0, "stream": True, "messages": [{"role": "user", "content": LONG}]}
    connection.request("POST", PATH, json.dumps(body), {"Content-Type": "application/json", "Connection": "close"})
    return connection


def begin_a_story(server: RunningServer) -> http.client.HTTPResponse:
    """A stream, as it comes; with the response its connection is closed."""
    return send_a_story(server).getresponse()
