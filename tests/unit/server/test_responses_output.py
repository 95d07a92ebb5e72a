"""Responses of chat answers: the order of the events, and that they add up to the whole object."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.chat_answers import WEATHER_CALL, chunks_of, cut, whole_of
from support.openai_schema import OpenAISchema, openai_schema
from windlass.engine.request import FinishReason
from windlass.protocol.responses import (
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatDelta,
    FunctionCallDelta,
    ToolCallDelta,
)
from windlass.protocol.responses_api import Response
from windlass.server.responses_output import ResponseWriter, begin_response, whole_response

Event = dict[str, Any]


@pytest.fixture(scope="session")
def schema(data_dir: Path) -> OpenAISchema:
    return openai_schema(data_dir)


def test_the_judge_refuses_what_is_no_event(schema: OpenAISchema) -> None:
    for wrong in ({"type": "response.completed", "sequence_number": 0}, {"type": "response.finished"}):
        with pytest.raises(jsonschema.ValidationError):
            schema.check("ResponseStreamEvent", wrong)


def begun(**body: Any) -> Response:
    return begin_response({"input": "Hi", **body}, model="m", temperature=1.0, top_p=1.0)  # type: ignore[typeddict-item]


def events_of(texts: Sequence[str], reason: FinishReason = FinishReason.STOP) -> tuple[list[Event], Response]:
    writer = ResponseWriter(begun())
    events = writer.begin()
    *chunks, last = chunks_of(texts, reason)
    for chunk in chunks:
        events += writer.add(chunk)
    assert last.usage is not None
    return events + writer.end(last.usage), writer.response


def kinds(events: list[Event]) -> list[str]:
    """The types of the events, each run of equal ones as one."""
    return [kind.removeprefix("response.") for kind, _ in itertools.groupby(event["type"] for event in events)]


TEXT = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done"]
REASONING = ["output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"]
CALL = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
DONE = ["content_part.done", "output_item.done"]
BEGIN = ["created", "in_progress"]


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_the_events_of_thoughts_text_and_calls(size: int, schema: OpenAISchema) -> None:
    answer = f"<think>Let me see.</think>I look it up.{WEATHER_CALL}\n{WEATHER_CALL}"
    events, response = events_of(cut(answer, size))
    assert kinds(events) == [*BEGIN, *REASONING, *DONE, *TEXT, *DONE, *CALL, *CALL, "completed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        schema.check("ResponseStreamEvent", event)
    reasoning, message, first, second = response.output
    assert [item.status for item in response.output] == ["completed"] * 4
    assert reasoning.content[0].text == "Let me see."  # type: ignore[union-attr]
    assert message.content[0].text == "I look it up."  # type: ignore[union-attr]
    assert first.name == second.name == "get_weather"  # type: ignore[union-attr]
    assert first.call_id != second.call_id  # type: ignore[union-attr]
    assert events[-1]["response"] == json.loads(json.dumps(response.to_json()))


def test_what_an_item_is_when_it_begins_and_when_it_is_done() -> None:
    events, _ = events_of(["Hi ", "there"])
    added, part, one, two, text, part_done, done = events[2:-1]
    item_id = added["item"]["id"]
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    place = {"item_id": item_id, "output_index": 0, "content_index": 0}
    assert item_id.startswith("msg_")
    assert added["item"] == {
        "id": item_id,
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }
    assert part | {"sequence_number": 0} == {
        "type": "response.content_part.added",
        "sequence_number": 0,
        **place,
        "part": empty,
    }
    assert (one["delta"], two["delta"], text["text"]) == ("Hi ", "there", "Hi there")
    assert all(event | place == event for event in (one, two, text, part_done))
    assert part_done["part"] == empty | {"text": "Hi there"}
    assert done["item"] == added["item"] | {"status": "completed", "content": [empty | {"text": "Hi there"}]}


def test_usage_and_what_the_request_said(schema: OpenAISchema) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    response = begun(
        instructions="Be brief.",
        metadata={"a": "b"},
        max_output_tokens=7,
        temperature=0.0,
        tools=[tool, {"type": "web_search"}],
        tool_choice="none",
        parallel_tool_calls=False,
        reasoning={"effort": "low"},
    )
    whole = whole_response(response, whole_of(["<think>a", "b</think>", "c"])).to_json()
    schema.check("Response", whole)
    assert whole["usage"] == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 23,
    }
    assert whole["store"] is False
    assert (whole["instructions"], whole["metadata"], whole["max_output_tokens"]) == ("Be brief.", {"a": "b"}, 7)
    assert (whole["temperature"], whole["top_p"], whole["reasoning"]["effort"]) == (0.0, 1.0, "low")
    assert (whole["tool_choice"], whole["parallel_tool_calls"]) == ("none", False)
    assert [one["name"] for one in whole["tools"]] == ["f"]


@pytest.mark.parametrize(
    "text", ["I look", "<think>I look", f'{WEATHER_CALL}\n<tool_call>{{"name": "f", "arguments": {{"a']
)
def test_an_answer_that_reached_its_limit_is_incomplete(text: str, schema: OpenAISchema) -> None:
    events, response = events_of(cut(text, 3), FinishReason.LENGTH)
    schema.check("ResponseStreamEvent", events[-1])
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response.output[-1].status == "incomplete"
    assert all(item.status == "completed" for item in response.output[:-1])


def test_an_error_ends_the_response_as_failed(schema: OpenAISchema) -> None:
    for text in ("", "I look"):
        writer = ResponseWriter(begun())
        events = writer.begin()
        for chunk in chunks_of(cut(text, 3))[:-2]:
            events += writer.add(chunk)
        events += writer.fail("the engine failed")
        assert kinds(events)[-1] == "failed"
        assert not {"completed", "incomplete"} & set(kinds(events))
        failed = events[-1]["response"]
        schema.check("ResponseStreamEvent", events[-1])
        assert failed["error"] == {"code": "server_error", "message": "the engine failed"}
        assert [item["status"] for item in failed["output"]] == ["incomplete"] * bool(text)
        assert "usage" not in failed


def test_an_empty_answer_has_an_empty_text() -> None:
    events, response = events_of([""])
    assert kinds(events) == [*BEGIN, *TEXT[:2], TEXT[3], *DONE, "completed"]
    assert response.output[0].content[0].text == ""  # type: ignore[union-attr]


def test_the_rest_of_a_call_goes_before_what_comes_with_it() -> None:
    def call(id: str | None, arguments: str) -> ToolCallDelta:  # noqa: A002
        return ToolCallDelta(index=0, id=id, function=FunctionCallDelta(name="f" if id else None, arguments=arguments))

    writer = ResponseWriter(begun())
    for delta in (
        ChatDelta(content="a", tool_calls=[call("one", ""), call(None, '{"x"')]),
        ChatDelta(content="b", tool_calls=[call(None, ": 1}"), call("two", "{}")]),
    ):
        writer.add(ChatCompletionChunk(id="x", created=0, model="m", choices=[ChatChunkChoice(index=0, delta=delta)]))
    writer.end(chunks_of([""])[-1].usage)  # type: ignore[arg-type]
    texts = [getattr(item, "arguments", None) or item.content[0].text for item in writer.response.output]  # type: ignore[union-attr]
    assert texts == ["a", '{"x": 1}', "b", "{}"]


fragments = st.sampled_from(
    [
        "<think>",
        "</think>",
        "text ",
        "\n",
        WEATHER_CALL,
        "<tool_call>",
        '{"name": "f", "arguments": {"a": 1}}',
        "}",
        "<",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(fragments, max_size=8),
    cuts=st.lists(st.integers(0, 200), max_size=8),
    reason=st.sampled_from(FinishReason),
)
def test_the_stream_adds_up_to_the_whole(parts: list[str], cuts: list[int], reason: FinishReason) -> None:
    text = "".join(parts)
    places = sorted({0, len(text), *(place for place in cuts if place < len(text))})
    texts = [text[start:end] for start, end in itertools.pairwise(places)] or [""]
    events, response = events_of(texts, reason)
    whole = whole_response(begun(), whole_of(texts, reason))
    assert deltas(events, "reasoning_text") == text_of(response, "reasoning") == text_of(whole, "reasoning")
    assert deltas(events, "output_text") == text_of(response, "message")
    assert response.status == whole.status
    complete = partial(filter, lambda call: call[1] == "completed")
    assert list(complete(calls_of(response)))[: len(calls_of(whole))] == calls_of(whole)
    if calls_of(response) == calls_of(whole):  # otherwise a call broke, which the whole gives as text
        assert text_of(response, "message") == text_of(whole, "message")
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]


def deltas(events: list[Event], kind: str) -> str:
    return "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")


def text_of(response: Response, kind: str) -> str:
    return "".join(item.content[0].text for item in response.output if item.type == kind)  # type: ignore[union-attr]


def calls_of(response: Response) -> list[tuple[str, str, str]]:
    return [(item.arguments, item.status, item.name) for item in response.output if item.type == "function_call"]  # type: ignore[union-attr]
