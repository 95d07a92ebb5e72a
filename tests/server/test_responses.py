"""``/v1/responses`` over HTTP: whole answers, streams, tools, refusals; OpenAI's own client and description judge."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from support.lifecycle import ANSWER, LONG, QUESTION, idle_and_whole, slow_down
from support.openai_schema import OpenAISchema, openai_schema
from support.server import RunningServer, serving

PATH = "/v1/responses"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
WEATHER_QUESTION = "What is the weather in Paris?"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving() as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def schema(data_dir: Path) -> OpenAISchema:
    return openai_schema(data_dir)


def test_a_whole_response(server: RunningServer, schema: OpenAISchema) -> None:
    answer = server.request("POST", PATH, {"input": QUESTION, "temperature": 0, "store": True})
    assert answer.status == 200
    schema.check("Response", answer.json)
    assert (answer.json["object"], answer.json["status"], answer.json["model"]) == (
        "response",
        "completed",
        "windlass-demo",
    )
    [message] = answer.json["output"]
    assert message["content"][0]["text"] == ANSWER
    assert answer.json["usage"]["output_tokens"] > 0
    assert answer.json["store"] is False


def test_a_stream_says_the_same(server: RunningServer, schema: OpenAISchema) -> None:
    answer = server.request("POST", PATH, {"input": QUESTION, "temperature": 0, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.events
    for event in events:
        schema.check("ResponseStreamEvent", event)
    assert [kind for kind, _ in itertools.groupby(event["type"] for event in events)] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    names = [line[7:] for line in answer.body.decode().split("\n") if line.startswith("event: ")]
    assert names == [event["type"] for event in events]
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == ANSWER
    assert events[-1]["response"]["usage"]["input_tokens"] > 0


def test_the_client_reads_it(client: openai.OpenAI) -> None:
    response = client.responses.create(model="windlass-demo", input=QUESTION, temperature=0)
    assert response.output_text == ANSWER
    pieces = [
        event.delta
        for event in client.responses.create(model="windlass-demo", input=QUESTION, temperature=0, stream=True)
        if event.type == "response.output_text.delta"
    ]
    assert "".join(pieces) == ANSWER
    with client.responses.stream(model="windlass-demo", input=QUESTION, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == ANSWER
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


def test_the_async_client_reads_it(server: RunningServer) -> None:
    async def ask() -> str:
        async with (
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
            client.responses.stream(model="windlass-demo", input=QUESTION, temperature=0) as stream,
        ):
            return (await stream.get_final_response()).output_text

    assert asyncio.run(ask()) == ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_its_result_and_the_answer(client: openai.OpenAI, *, stream: bool) -> None:
    def ask(conversation: Any) -> Any:
        wanted: Any = {"model": "windlass-demo", "input": conversation, "tools": [WEATHER], "temperature": 0}
        if not stream:
            return client.responses.create(**wanted)
        with client.responses.stream(**wanted) as events:
            return events.get_final_response()

    conversation: Any = [{"role": "user", "content": WEATHER_QUESTION}]
    response = ask(conversation)
    [call] = response.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert json.loads(call.arguments) == {"city": "Paris"}
    conversation += [
        call.to_dict(),
        {"type": "function_call_output", "call_id": call.call_id, "output": '{"weather": "rainy"}'},
    ]
    assert ask(conversation).output_text == "The weather in Paris is rainy."


def test_an_answer_that_reached_its_limit(client: openai.OpenAI) -> None:
    response = client.responses.create(model="windlass-demo", input=QUESTION, temperature=0, max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.output_tokens == 2
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]


def test_instructions_and_items_make_the_chat_prompt(server: RunningServer) -> None:
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": QUESTION},
    ]
    chat = server.request("POST", "/v1/chat/completions", {"messages": said, "max_tokens": 1}).json["usage"]
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]
    items += [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello!"}]}]
    items += [{"role": "user", "content": QUESTION}]
    body = {"instructions": "Be brief.", "input": items, "max_output_tokens": 1}
    assert server.request("POST", PATH, body).json["usage"]["input_tokens"] == chat["prompt_tokens"]


def test_what_codex_sends_is_taken(server: RunningServer, schema: OpenAISchema) -> None:
    def message(role: str, text: str) -> dict[str, Any]:
        return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}

    body = {
        "model": "windlass-demo",
        "instructions": "You are a coding agent.",
        "input": [
            message("developer", "Approval policy: never."),
            message("user", "<environment_context><cwd>/tmp</cwd></environment_context>"),
            message("user", WEATHER_QUESTION),
        ],
        "tools": [
            WEATHER,
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark"}},
            {"type": "web_search", "external_web_access": False},
            {"type": "namespace", "name": "mcp", "description": "", "tools": [WEATHER]},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199",
        "text": {"verbosity": "low"},
        "client_metadata": {"originator": "codex"},
    }
    events = server.request("POST", PATH, body).events
    for event in events:
        schema.check("ResponseStreamEvent", event)
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    assert [tool["name"] for tool in events[-1]["response"]["tools"]] == ["get_weather"]


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found", "model"),
        ({"no_such": 1}, 400, "unknown_parameter", "no_such"),
        ({"previous_response_id": "resp_1"}, 400, "unsupported_parameter", "previous_response_id"),
        ({"background": True}, 400, "unsupported_parameter", "background"),
        ({"input": "x " * 20000}, 400, "context_length_exceeded", "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400, "invalid_value", "input[0]"),
        ({"input": None}, 400, "missing_required_parameter", "input"),
        ({"temperature": 9}, 400, "invalid_value", "temperature"),
        ({"stream": "yes"}, 400, "invalid_value", "stream"),
    ],
)
def test_a_bad_request_is_refused_by_name(
    server: RunningServer, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = server.request("POST", PATH, {"input": QUESTION, **fields})
    error = answer.json["error"]
    assert (answer.status, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.fixture
def slow_server() -> Iterator[RunningServer]:
    """One that takes seconds to tell a story, and ends at once."""
    with serving() as running:
        slow_down(running.engine, 0.03)
        yield running


def begin_a_story(client: openai.OpenAI) -> tuple[Any, list[Any]]:
    """A stream that has begun to tell, and its events so far."""
    stream = client.responses.create(model="windlass-demo", input=LONG, temperature=0, stream=True)
    events = []
    for event in stream:
        events.append(event)
        if event.type == "response.output_text.delta":
            break
    return stream, events


def test_a_client_that_leaves_frees_its_request(slow_server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{slow_server.url}/v1", api_key="none") as client:
        stream, _ = begin_a_story(client)
        stream.close()
    assert idle_and_whole(slow_server.engine)
    assert slow_server.engine._metrics().requests_aborted["caller"] == 1


def test_a_stream_that_is_cut_ends_with_failed(slow_server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{slow_server.url}/v1", api_key="none") as client:
        stream, events = begin_a_story(client)
        slow_server.stop()
        slow_server.stop()
        events += list(stream)
    last = events[-1]
    assert last.type == "response.failed"
    assert (last.response.status, last.response.error.code) == ("failed", "server_error")
    assert "shutting down" in last.response.error.message
    assert [event.sequence_number for event in events] == list(range(len(events)))
