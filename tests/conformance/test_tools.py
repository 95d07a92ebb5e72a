"""Tool calls of the demo model, as OpenAI's objects, and reasoning through the same door."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from windlass import EngineConfig, MLCEngine
from windlass.engine.request import FinishReason
from windlass.protocol.responses import Usage
from windlass.serve.call import CallInfo
from windlass.serve.chat_format import ChatFormat
from windlass.serve.mailbox import Piece
from windlass.text.answer import AnswerParser

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def engine() -> Iterator[MLCEngine]:
    with MLCEngine(engine_config=EngineConfig(verbose=False)) as engine:
        yield engine


def test_a_call_its_result_and_the_answer(engine: MLCEngine) -> None:
    response = engine.chat.completions.create(messages=QUESTION, tools=[WEATHER])
    [choice] = response.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls or []
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    conversation: list[Any] = [
        *QUESTION,
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "rainy"}'},
    ]
    answer = engine.chat.completions.create(messages=conversation, tools=[WEATHER]).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.message.content == "The weather in Paris is rainy."


def test_a_streamed_call_adds_up(engine: MLCEngine) -> None:
    name, arguments, ids, reasons = "", "", set(), []
    for chunk in engine.chat.completions.create(messages=QUESTION, tools=[WEATHER], stream=True):
        delta = chunk.choices[0].delta
        assert not delta.content
        for call in delta.tool_calls or []:
            assert call.index == 0
            ids |= {call.id} if call.id else set()
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        reasons.append(chunk.choices[0].finish_reason)
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Paris"})
    assert len(ids) == 1
    assert [reason for reason in reasons if reason] == ["tool_calls"]


def test_tools_that_may_not_be_called_are_not_shown(engine: MLCEngine) -> None:
    with_tools = engine.chat.completions.create(messages=QUESTION, tools=[WEATHER], max_tokens=1).usage.prompt_tokens
    without = engine.chat.completions.create(messages=QUESTION, max_tokens=1).usage.prompt_tokens
    none = engine.chat.completions.create(messages=QUESTION, tools=[WEATHER], tool_choice="none", max_tokens=1)
    assert none.usage.prompt_tokens == without < with_tools
    assert none.choices[0].message.tool_calls is None


INFO = CallInfo(
    id="x", model="m", created=0, num_prompt_tokens=1, num_choices=1, choices_per_prompt=1, include_usage=False
)
USAGE = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)


def format_of(*, tools: bool = False, reasoning: bool = False) -> ChatFormat:
    return ChatFormat(INFO, new_parser=lambda: AnswerParser(tools=tools, reasoning=reasoning), with_logprobs=False)


def pieces(text: str, reason: FinishReason, size: int = 3) -> list[Piece]:
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    return [Piece(0, part, i + 1, reason if i + 1 == len(parts) else None) for i, part in enumerate(parts)]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_reasoning_has_both_names_and_content_follows(size: int) -> None:
    answer = pieces("<think>\nLet me see.\n</think>\n\nIt is 4.", FinishReason.STOP, size)
    message = format_of(reasoning=True).response([answer], USAGE).choices[0].message
    assert message.reasoning == message.reasoning_content == "Let me see."
    assert message.content == "It is 4."
    streamed = format_of(reasoning=True)
    deltas = [chunk.choices[0].delta for chunk in map(streamed.chunk, answer) if chunk is not None]
    assert "".join(delta.reasoning or "" for delta in deltas) == "Let me see."
    assert "".join(delta.content or "" for delta in deltas) == "It is 4."
    assert [delta.role for delta in deltas].count("assistant") == 1


@pytest.mark.parametrize("size", [1, 5])
def test_tokens_of_reasoning_are_counted_apart(size: int) -> None:
    answer = pieces("<think>ab</think>It is 4.", FinishReason.STOP, size)
    whole = format_of(reasoning=True)
    streamed = format_of(reasoning=True)
    for piece in answer:
        streamed.chunk(piece)
    for usage in (whole.response([answer], USAGE).usage, streamed.usage_chunk(USAGE).usage):
        assert usage is not None
        assert usage.completion_tokens_details is not None
        assert usage.completion_tokens_details.reasoning_tokens == {1: 9, 5: 2}[size]
    assert format_of().response([answer], USAGE).usage.completion_tokens_details is None


def test_the_stop_string_is_known_and_not_part_of_the_object() -> None:
    end = Piece(0, "a", 1, FinishReason.STOP, stop_string="END")
    choice = format_of().response([[end]], USAGE).choices[0]
    chunk = format_of().chunk(end)
    assert chunk is not None
    for one in (choice, chunk.choices[0]):
        assert one.stop_string == "END"
        assert "stop_string" not in one.model_dump()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_cut_call_is_content_and_does_not_claim_to_be_one(size: int) -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par'
    choice = format_of(tools=True).response([pieces(text, FinishReason.LENGTH, size)], USAGE).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None
    assert choice.message.content == text


def test_markers_are_content_where_nothing_was_asked_for() -> None:
    text = '<think>x</think><tool_call>{"name": "f", "arguments": {}}</tool_call>'
    choice = format_of().response([pieces(text, FinishReason.STOP)], USAGE).choices[0]
    assert (choice.message.content, choice.finish_reason) == (text, "stop")
