"""What requests to /v1/messages become, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.json_values import json_values, mixed
from windlass.errors import InvalidRequestError
from windlass.protocol.arguments import ChatArguments, check_arguments
from windlass.protocol.messages_api import MessagesBody
from windlass.server.messages_input import chat_arguments, check_messages_body

USER = {"role": "user", "content": "Hi"}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "42", "is_error": False}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words, "cache_control": {"type": "ephemeral"}}


def arguments_of(**fields: Any) -> ChatArguments:
    body = check_messages_body(MessagesBody, {"max_tokens": 9, "messages": [USER], **fields})
    return check_arguments(ChatArguments, chat_arguments(body))


def messages_of(*messages: Any, **fields: Any) -> list[dict[str, Any]]:
    return arguments_of(messages=list(messages), **fields)["messages"]


def test_the_least_request() -> None:
    assert arguments_of() == {"messages": [USER], "max_tokens": 9}


def test_a_turn_with_a_call_and_its_result() -> None:
    turn = [{"type": "thinking", "thinking": "Hm.", "signature": ""}, text("I look."), CALL]
    after = [RESULT, text("And now?"), text("Well?")]
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert messages_of(USER, {"role": "assistant", "content": turn}, {"role": "user", "content": after}) == [
        USER,
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "name": "f", "content": "42"},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}, {"type": "text", "text": "Well?"}]},
    ]


def test_results_are_text_or_blocks_or_nothing() -> None:
    for content, expected in (([text("a")], "a"), (None, ""), ([], ""), ("", "")):
        result = {"role": "user", "content": [{**RESULT, "content": content}]}
        *_, last = messages_of(USER, {"role": "assistant", "content": [CALL]}, result)
        assert (last["role"], last["content"] or "") == ("tool", expected)


def test_the_system_prompt_is_one_message() -> None:
    note = "x-anthropic-billing-header: cc_version=2.1; cch=fa690;"
    assert messages_of(USER, system="a")[0] == {"role": "system", "content": "a"}
    assert messages_of(USER, system=[text(note), text("a"), text("b")])[0]["content"] == "a\n\nb"
    assert messages_of(USER, system=[text(note)]) == [USER]
    assert messages_of(USER, {"role": "system", "content": "c"}, USER)[1] == {"role": "system", "content": "c"}


def test_thoughts_that_nobody_can_read_are_passed_over() -> None:
    turn = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, text("a")]}
    assert messages_of(USER, turn, USER)[1] == {"role": "assistant", "content": "a"}


def test_settings_are_passed_on() -> None:
    arguments = arguments_of(
        temperature=0,
        top_p=0.5,
        top_k=3,
        stop_sequences=["END"],
        tools=[TOOL],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
    )
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert arguments == {
        "messages": [USER],
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 3,
        "stop": ["END"],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
    }


@pytest.mark.parametrize(
    ("kind", "effort", "expected"),
    [("enabled", None, "high"), ("adaptive", "low", "low"), ("disabled", None, "none"), ("disabled", "max", "none")],
)
def test_thinking_is_an_effort_of_a_chat_call(kind: str, effort: str | None, expected: str) -> None:
    thinking = {"type": kind, "budget_tokens": 1024}
    arguments = arguments_of(thinking=thinking, output_config={"effort": effort})
    assert arguments["reasoning_effort"] == expected


def test_what_clients_send_and_what_changes_nothing_is_taken() -> None:
    fields = {
        "metadata": {"user_id": "me"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": []},
        "output_config": {"effort": "high"},
        "inference_geo": None,
        "stop_sequences": [],
        "system": None,
        "tools": [],
        "stream": True,
    }
    assert arguments_of(**fields) == arguments_of()


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": None}, "max_tokens", "required"),
        ({"max_tokens": 0}, "max_tokens", "greater"),
        ({"messages": None}, "messages", "required"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": ["Hi"]}, "messages", "dictionary"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "role"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0]", "reads text only"),
        ({"messages": [{"role": "user", "content": [{"type": []}]}]}, "messages[0]", "reads text only"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]", "text"),
        ({"messages": [{"role": "user", "content": [CALL]}]}, "messages[0]", "tool_result"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "messages[0]", "no tool_use"),
        ({"messages": [USER, {"role": "assistant", "content": "So"}]}, "messages", "cannot be begun"),
        ({"system": [{"type": "image"}]}, "system", "reads text only"),
        ({"system": 1}, "system", "system"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "'auto' and 'none'"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice", "'auto' and 'none'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools", "no tools of its own"),
        ({"tools": [{"name": "f"}]}, "tools[0]", "input_schema"),
        ({"tools": [{"name": "", "input_schema": {}}]}, "tools[0]", "name"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config", "format"),
        ({"thinking": {"type": "often"}}, "thinking", "type"),
        ({"mcp_servers": []}, "mcp_servers", "unknown"),
        ({"stop_sequences": [""]}, "stop_sequences", "at least 1"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        arguments_of(**fields)
    assert caught.value.param == param
    assert words in str(caught.value)


blocks = mixed(
    {
        "type": st.sampled_from(["text", "thinking", "redacted_thinking", "tool_use", "tool_result"]),
        "text": st.just("t"),
        "thinking": st.just("t"),
        "id": st.just("i"),
        "tool_use_id": st.just("i"),
        "name": st.just("f"),
        "input": st.just({}),
        "content": st.just("c"),
    }
)
messages = mixed(
    {
        "role": st.sampled_from(["user", "assistant", "system"]),
        "content": st.just("x") | st.lists(blocks, max_size=3),
    }
)


@settings(max_examples=300, deadline=None)
@given(
    fields=st.just({})
    | st.dictionaries(st.sampled_from(sorted(MessagesBody.__annotations__)), json_values, max_size=2),
    messages=st.lists(messages, max_size=4) | json_values,
    tools=st.lists(mixed({"name": st.just("f"), "input_schema": st.just({}), "type": st.just("custom")}), max_size=2),
)
def test_any_body_is_understood_or_refused(fields: dict[str, Any], messages: Any, tools: Any) -> None:
    try:
        arguments = arguments_of(**{"messages": messages, "tools": tools, **fields})
    except InvalidRequestError:
        return
    assert arguments["messages"]
