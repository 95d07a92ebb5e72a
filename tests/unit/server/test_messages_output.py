"""Anthropic's messages of chat answers: the order of the events, and that they add up to the whole object."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.chat_answers import WEATHER_CALL, chunks_of, cut, whole_of
from windlass.engine.request import FinishReason
from windlass.protocol.messages_api import Message, MessagesBody
from windlass.server.messages_output import MessageWriter, whole_message

Event = dict[str, Any]
BODY: MessagesBody = {"max_tokens": 3, "messages": [{"role": "user", "content": "Hi"}], "stop_sequences": ["END"]}


def events_of(
    texts: Sequence[str], reason: FinishReason = FinishReason.STOP, stop: str | None = None
) -> tuple[list[Event], Message]:
    writer = MessageWriter(BODY, model="m", num_prompt_tokens=20)
    events = writer.begin()
    *chunks, last = chunks_of(texts, reason, stop)
    for chunk in chunks:
        events += writer.add(chunk)
    assert last.usage is not None
    return events + writer.end(last.usage), writer.message


def read(events: list[Event]) -> Event:
    """The message that a client puts together from the events, which must come in order."""
    start, *middle, end, stop = events
    assert (start["type"], end["type"], stop) == ("message_start", "message_delta", {"type": "message_stop"})
    message: Event = json.loads(json.dumps(start["message"]))
    names = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
    open_index = None
    for event in middle:
        if event["type"] == "content_block_start":
            assert open_index is None
            open_index = event["index"]
            assert open_index == len(message["content"])
            message["content"].append(dict(event["content_block"]))
            arguments = ""
            continue
        block = message["content"][open_index]
        assert event["index"] == open_index
        if event["type"] == "content_block_stop":
            open_index = None
            if block["type"] == "tool_use":
                block["input"] = json.loads(arguments)
        elif event["delta"]["type"] == "input_json_delta":
            arguments += event["delta"]["partial_json"]
        else:
            name = names[event["delta"]["type"]]
            block[name] += event["delta"][name]
    assert open_index is None
    return message | end["delta"] | {"usage": end["usage"]}


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_the_events_of_thoughts_text_and_calls(size: int) -> None:
    answer = f"<think>Let me see.</think>I look it up.{WEATHER_CALL}\n{WEATHER_CALL}"
    events, message = events_of(cut(answer, size))
    kinds = [event.get("delta", event).get("type", event["type"]) for event in events]
    assert [kind for kind, _ in itertools.groupby(kinds)] == [
        "message_start",
        *("content_block_start", "thinking_delta", "signature_delta", "content_block_stop"),
        *("content_block_start", "text_delta", "content_block_stop"),
        *("content_block_start", "input_json_delta", "content_block_stop") * 2,
        "message_delta",
        "message_stop",
    ]
    assert read(events) == message.model_dump()
    thinking, text, first, second = message.content
    assert thinking.model_dump() == {"type": "thinking", "thinking": "Let me see.", "signature": ""}
    assert text.model_dump() == {"type": "text", "text": "I look it up."}
    assert first.input == second.input == {"city": "Paris"}  # type: ignore[union-attr]
    assert first.id != second.id  # type: ignore[union-attr]
    assert message.stop_reason == "tool_use"


@pytest.mark.parametrize(
    ("texts", "reason", "stop", "expected"),
    [
        (["a"], FinishReason.STOP, None, ("end_turn", None)),
        (["a"], FinishReason.STOP, "END", ("stop_sequence", "END")),
        (["a"], FinishReason.STOP, "</s>", ("end_turn", None)),  # the template's own
        (["a", "b", "c"], FinishReason.LENGTH, None, ("max_tokens", None)),
        (["a", "b"], FinishReason.LENGTH, None, ("model_context_window_exceeded", None)),
        ([WEATHER_CALL], FinishReason.STOP, None, ("tool_use", None)),
    ],
)
def test_why_it_ended(
    texts: list[str], reason: FinishReason, stop: str | None, expected: tuple[str, str | None]
) -> None:
    whole = whole_message(BODY, whole_of(texts, reason, stop), model="m")
    _, streamed = events_of(texts, reason, stop)
    for message in (whole, streamed):
        assert (message.stop_reason, message.stop_sequence) == expected


def test_usage_tells_what_came_from_the_cache() -> None:
    events, message = events_of(["a", "b"])
    assert events[0]["message"]["usage"]["input_tokens"] == 20
    assert message.usage.model_dump() == {
        "input_tokens": 4,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 16,
        "output_tokens": 2,
    }


def test_an_empty_answer_has_an_empty_text() -> None:
    events, message = events_of([""])
    assert read(events) == message.model_dump()
    assert [block.model_dump() for block in message.content] == [{"type": "text", "text": ""}]


def test_a_call_that_was_cut_has_no_input() -> None:
    _, message = events_of(['<tool_call>{"name": "f", "arguments": {"a": "b'], FinishReason.LENGTH)
    assert message.content[0].model_dump() | {"id": ""} == {"type": "tool_use", "id": "", "name": "f", "input": {}}
    assert message.stop_reason != "tool_use"


fragments = st.sampled_from(["<think>", "</think>", "text ", "\n", WEATHER_CALL, "<", "}"])


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(fragments, max_size=8), cuts=st.lists(st.integers(0, 200), max_size=8))
def test_the_stream_adds_up_to_the_whole(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    places = sorted({0, len(text), *(place for place in cuts if place < len(text))})
    texts = [text[start:end] for start, end in itertools.pairwise(places)] or [""]
    events, streamed = events_of(texts)
    whole = whole_message(BODY, whole_of(texts), model="m")
    assert read(events) == streamed.model_dump()
    for kind in ("text", "thinking"):
        assert joined(streamed, kind) == joined(whole, kind)
    assert [c.input for c in streamed.content if c.type == "tool_use"] == [
        c.input for c in whole.content if c.type == "tool_use"
    ]
    assert (streamed.stop_reason, streamed.usage) == (whole.stop_reason, whole.usage)


def joined(message: Message, kind: str) -> str:
    return "".join(getattr(block, kind) for block in message.content if block.type == kind)
