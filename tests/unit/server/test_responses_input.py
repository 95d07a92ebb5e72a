"""What requests to /v1/responses become, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.json_values import json_values, mixed
from windlass.errors import InvalidRequestError
from windlass.protocol.arguments import ChatArguments, check_arguments
from windlass.protocol.responses_api import INPUT_ITEMS, OTHER_TOOLS, ResponsesBody
from windlass.server.responses_input import chat_arguments, check_responses_body
from windlass.server.responses_output import begin_response

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_1", "status": "completed"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}


def arguments_of(body: dict[str, Any]) -> ChatArguments:
    return check_arguments(ChatArguments, chat_arguments(check_responses_body(body)))


def messages_of(items: Any, **fields: Any) -> list[dict[str, Any]]:
    return arguments_of({"input": items, **fields})["messages"]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": content}


def test_a_text_is_a_message_of_the_user() -> None:
    assert arguments_of({"input": "Hi"}) == {"messages": [user("Hi")]}


def test_what_a_turn_thought_said_and_called_is_one_message() -> None:
    messages = messages_of([user("Q"), THOUGHT, said("I look."), CALL, OUTPUT, THOUGHT, said("42.")])
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert messages == [
        user("Q"),
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "42"},
        {"role": "assistant", "content": "42.", "reasoning_content": "Hm."},
    ]


def test_calls_one_after_the_other_are_of_one_turn() -> None:
    second = {**CALL, "call_id": "c2"}
    turn, one, two = messages_of([CALL, second, OUTPUT, {**OUTPUT, "call_id": "c2"}])
    assert [call["id"] for call in turn["tool_calls"]] == ["c1", "c2"]
    assert turn["content"] is None
    assert (one["tool_call_id"], two["tool_call_id"]) == ("c1", "c2")


def test_messages_of_the_assistant_in_a_row_stay_apart() -> None:
    assert messages_of([said("a"), said("b"), CALL, said("c")])[1:] == [
        {
            "role": "assistant",
            "content": "b",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "assistant", "content": "c"},
    ]


def test_instructions_and_the_first_system_messages_are_one() -> None:
    system = [{"role": "developer", "content": "b"}, {"role": "system", "content": "c"}]
    messages = messages_of([*system, user("Hi"), {"role": "developer", "content": "d"}], instructions="a")
    assert messages == [{"role": "system", "content": "a\n\nb\n\nc"}, user("Hi"), {"role": "developer", "content": "d"}]
    assert messages_of([system[0], user("Hi")])[0] == {"role": "system", "content": "b"}


def test_parts_stay_parts() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert messages_of([{"role": "user", "content": parts}])[0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    assert messages_of([CALL, {**OUTPUT, "output": parts[:1]}])[1]["content"] == "a"


def test_a_summary_stands_for_thoughts_that_are_not_given() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "x"}
    assert messages_of([thought, said("a")])[0]["reasoning_content"] == "s"
    assert "reasoning_content" not in messages_of([{"type": "reasoning", "summary": []}, said("a")])[0]


def test_settings_are_passed_on() -> None:
    arguments = arguments_of(
        {
            "input": "Hi",
            "max_output_tokens": 5,
            "temperature": 0,
            "top_p": 0.5,
            "tools": [FUNCTION, {"type": "web_search"}],
            "tool_choice": "none",
            "parallel_tool_calls": False,
        }
    )
    assert arguments == {
        "messages": [user("Hi")],
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "none",
        "parallel_tool_calls": False,
    }


def test_effort_is_that_of_a_chat_call() -> None:
    assert arguments_of({"input": "Hi", "reasoning": {"effort": "low", "summary": "auto"}})["reasoning_effort"] == "low"
    assert "reasoning_effort" not in arguments_of({"input": "Hi", "reasoning": {"summary": "auto"}})


def test_what_clients_send_and_what_changes_nothing_is_taken() -> None:
    fields = {
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "user": "me",
        "safety_identifier": "me",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "truncation": "disabled",
        "background": False,
        "previous_response_id": None,
        "include": ["reasoning.encrypted_content"],
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "stream_options": {"include_obfuscation": False},
        "max_tool_calls": 3,
        "top_logprobs": 0,
        "client_metadata": {"session": "x"},
    }
    assert arguments_of({"input": "Hi", **fields}) == arguments_of({"input": "Hi"})


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": []}, "input", "at least 1"),
        ({"input": {"role": "user"}}, "input", "input"),
        ({"input": ["Hi"]}, "input", "dictionary"),
        ({"input": [{"role": "owner", "content": "x"}]}, "input[0]", "role"),
        ({"input": [{"role": "user"}]}, "input[0]", "content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0]", "reads text only"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0]", "text"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "keeps nothing"),
        ({"input": [{"type": "computer_call"}]}, "input[0]", "function_call_output"),
        ({"input": [{"type": ["message"]}]}, "input[0]", "not supported"),
        ({"input": ["x", OUTPUT]}, "input", "dictionary"),
        ({"input": [OUTPUT]}, "input[0]", "no function_call"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "nothing is said"),
        ({"input": [{**CALL, "arguments": {}}]}, "input[0]", "arguments"),
        ({"conversation": "c"}, "conversation", "keeps nothing"),
        ({"prompt": {"id": "p"}}, "prompt", "keeps nothing"),
        ({"top_logprobs": 2}, "top_logprobs", "/v1/chat/completions"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"text": {"format": {"type": "json_schema"}}}, "text", "'json_schema'"),
        ({"tool_choice": "required"}, "tool_choice", "'auto' and 'none'"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "'auto' and 'none'"),
        ({"include": ["message.output_text.logprobs"]}, "include", "/v1/chat/completions"),
        ({"include": ["x"]}, "include", "unknown"),
        ({"tools": [{"type": "web_search"}]}, "tools", "send functions"),
        ({"tools": [{"type": "x"}]}, "tools", "'function'"),
        ({"tools": [{"type": {}}]}, "tools", "'function'"),
        ({"tools": [{"type": "function"}]}, "tools[0]", "name"),
        ({"reasoning": {"effort": "huge"}}, "reasoning", "effort"),
        ({"metadata": {"a": 1}}, "metadata", "string"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        arguments_of({"input": "Hi", **fields})
    assert caught.value.param == param
    assert words in str(caught.value)


def test_a_refusal_is_short_however_long_what_it_refuses() -> None:
    long = "x" * 100_000
    for fields in (
        {long: 1},
        {"include": [long]},
        {"tools": [{"type": long}]},
        {"text": {"format": {"type": long}}},
        {"input": [{"type": long}]},
        {"input": [{**OUTPUT, "call_id": long}]},
        {"input": [{"role": "user", "content": [{"type": long}]}]},
    ):
        with pytest.raises(InvalidRequestError) as caught:
            arguments_of({"input": "Hi", **fields})
        assert len(str(caught.value)) < 1000
        assert len(caught.value.param or "") <= 100


FIELDS = sorted(ResponsesBody.__annotations__)
items = mixed(
    {
        "type": st.sampled_from([*INPUT_ITEMS, "item_reference"]),
        "role": st.sampled_from(["user", "assistant", "system"]),
        "content": st.just("x") | st.lists(mixed({"type": st.just("input_text"), "text": st.just("t")}), max_size=2),
        "call_id": st.just("c"),
        "name": st.just("f"),
        "arguments": st.just("{}"),
        "output": st.just("o"),
        "summary": st.just([]),
    }
)
tools = mixed({"type": st.sampled_from(["function", *OTHER_TOOLS]), "name": st.just("f"), "parameters": st.just({})})


@settings(max_examples=300, deadline=None)
@given(
    body=st.just({}) | st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=2),
    input=st.lists(items, max_size=4) | json_values,
    tools=st.lists(tools, max_size=2),
)
def test_any_body_is_understood_or_refused(body: dict[str, Any], input: Any, tools: Any) -> None:  # noqa: A002
    try:
        checked = check_responses_body({"input": input, "tools": tools, **body})
        arguments = chat_arguments(checked)
        response = begin_response(checked, model="m", temperature=1.0, top_p=1.0)
    except InvalidRequestError:
        return
    assert check_arguments(ChatArguments, arguments)["messages"]
    assert response.to_json()["object"] == "response"
