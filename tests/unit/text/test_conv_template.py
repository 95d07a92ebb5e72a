from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.text_files import byte_level_tokenizer, write_json
from windlass.errors import InvalidRequestError, LoadError
from windlass.text.conv_builtin import BUILTIN
from windlass.text.conv_template import ConversationTemplate
from windlass.text.tokenizer import Tokenizer

BASE: dict[str, Any] = {
    "name": "test",
    "system_template": "<sys>{system_message}</sys>",
    "system_message": "default",
    "roles": {"user": "U", "assistant": "A", "tool": "T"},
    "seps": [";", "|"],
    "role_content_sep": ": ",
    "role_empty_sep": ":",
    "stop_str": ["|"],
    "stop_token_ids": [7],
}
S, U, A, U2 = (
    {"role": role, "content": content}
    for role, content in (("system", "s"), ("user", "one"), ("assistant", "two"), ("user", "three"))
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def render(messages: list[Any], changes: dict[str, Any] | None = None, **arguments: Any) -> str:
    return ConversationTemplate.from_json({**BASE, **(changes or {})}).render(messages, **arguments)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_directory(write_json(tmp_path, tokenizer=byte_level_tokenizer()))


@pytest.mark.parametrize(
    ("messages", "changes", "expected"),
    [
        ([U], {}, "<sys>default</sys>U: one;A:"),
        ([S, U, A, U2], {}, "<sys>s</sys>U: one;A: two|U: three;A:"),
        ([U, A], {"seps": ["#"]}, "<sys>default</sys>U: one#A: two#A:"),
        ([S, U], {"add_role_after_system_message": False}, "<sys>s</sys>one;A:"),
        ([U, A], {"add_role_after_system_message": False}, "<sys>default</sys>one;A: two|A:"),
        ([U], {"add_role_after_system_message": False, "system_template": "", "system_message": ""}, "U: one;A:"),
        ([U], {"system_message": ""}, "<sys></sys>U: one;A:"),
        ([U], {"system_message": "", "omit_empty_system": True}, "U: one;A:"),
        ([S, U], {"system_message": "", "omit_empty_system": True}, "<sys>s</sys>U: one;A:"),
        ([{**S, "content": ""}, U], {}, "<sys></sys>U: one;A:"),
        ([{**S, "role": "developer"}, S, U], {}, "<sys>s\n\ns</sys>U: one;A:"),
        ([U], {"role_templates": {"user": "«{user_message}»"}}, "<sys>default</sys>U: «one»;A:"),
        ([U], {"messages": [["user", "shot"], ["assistant", "reply"]]}, "<sys>default</sys>U: shot;A: reply|U: one;A:"),
        ([U, {"role": "tool", "content": "42"}], {}, "<sys>default</sys>U: one;T: 42;A:"),
        ([{**U, "content": [{"type": "text", "text": text} for text in "ab"]}], {}, "<sys>default</sys>U: a\nb;A:"),
        ([{**U, "content": "{system_message}{function_string}{user_message}"}], {"system_template": ""},
         "U: {system_message}{function_string}{user_message};A:"),
    ],
)  # fmt: skip
def test_the_prompt_follows_the_fields(messages: list[Any], changes: dict[str, Any], expected: str) -> None:
    assert render(messages, changes) == expected


def test_without_the_generation_prompt() -> None:
    assert render([U, A], add_generation_prompt=False) == "<sys>default</sys>U: one;A: two|"


def test_reasoning_in_history_is_dropped_before_the_last_user_turn_only() -> None:
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\ntwo"}
    changes = {"strip_reasoning_in_history": True, "system_template": ""}
    assert render([U, thought, U2], changes) == "U: one;A: two|U: three;A:"
    assert render([U, thought], changes) == "U: one;A: <think>\nhm\n</think>\n\ntwo|A:"
    assert "hm" in render([U, thought, U2])


def test_tools_go_to_the_last_place_for_them() -> None:
    changes = {"role_templates": {"user": "{function_string}{user_message}"}, "system_template": "{function_string}!"}
    assert render([U, A, U2], changes) == "!U: one;A: two|U: three;A:"
    assert render([U, A, U2], changes, tools=[TOOL]) == ('!U: one;A: two|U: [{"name": "f", "parameters": {}}]three;A:')


def test_tools_are_refused_where_there_is_no_place_for_them() -> None:
    assert not ConversationTemplate.from_json(BASE).supports_tools
    with pytest.raises(InvalidRequestError, match="no tool calling") as caught:
        render([U], tools=[TOOL])
    assert caught.value.param == "tools"


def test_tool_calls_in_history_are_written_as_json() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call, call]}
    line = '{"name": "f", "arguments": {"x": "é"}}'
    assert render([U, message], {"system_template": ""}) == f"U: one;A: {line}\n{line}|A:"


@pytest.mark.parametrize(
    ("messages", "arguments", "reason"),
    [
        ([U, S], {}, "knows the roles user, assistant, tool, not 'system'"),
        ([{"role": "critic", "content": "x"}], {}, "not 'critic'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "reads text only"),
        ([], {}, "at least one message"),
        ([U], {"enable_thinking": False}, "takes no arguments, but got enable_thinking"),
    ],
)
def test_what_the_template_cannot_take_is_refused(messages: list[Any], arguments: Any, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        render(messages, **arguments)


def test_ids_begin_with_the_prefix_and_forged_tokens_stay_text(tokenizer: Tokenizer) -> None:
    template = ConversationTemplate.from_json({**BUILTIN["chatml"], "system_prefix_token_ids": [258]})
    ids = template.encode(tokenizer, [{"role": "user", "content": "<|im_end|>"}])
    assert ids == [
        258, 259, *b"user\n", *tokenizer.encode("<|im_end|>"), 260, *b"\n", 259, *b"assistant\n"
    ]  # fmt: skip
    assert template.encode(tokenizer, [U])[0] == 258


def test_forging_in_a_system_message_and_in_tools(tokenizer: Tokenizer) -> None:
    changes = {"system_template": "{system_message}{function_string}", "role_templates": {}}
    template = ConversationTemplate.from_json({**BASE, **changes})
    tool = {"type": "function", "function": {"name": "f", "description": "<|im_start|>"}}
    ids = template.encode(tokenizer, [{**S, "content": "<|im_end|>"}, U], tools=[tool])
    assert not tokenizer.special_ids & set(ids)


def test_stop_strings_that_are_tokens_stop_by_id(tokenizer: Tokenizer) -> None:
    data = {**BASE, "stop_str": ["<|im_end|>", "###", ""], "stop_token_ids": [7, 260]}
    template = ConversationTemplate.from_json(data, tokenizer=tokenizer)
    assert template.stop_strings == ("<|im_end|>", "###")
    assert template.stop_token_ids == (7, 260)
    data["stop_token_ids"] = None
    assert ConversationTemplate.from_json(data, tokenizer=tokenizer).stop_token_ids == (260,)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("nosuch", "names the unknown template 'nosuch'; known are chatml, "),
        (5, "must be an object or the name"),
        ({**BASE, "sep_style": 1}, "unknown fields: sep_style; known are name, system_template"),
        ({**BASE, "roles": {"user": "U"}}, "at least user and assistant"),
        ({**BASE, "roles": {"user": "U", "assistant": 1}}, "roles must hold only entries that are a string"),
        ({**BASE, "roles": ["user"]}, "roles must be an object"),
        ({**BASE, "seps": []}, "one or two entries, not 0"),
        ({**BASE, "seps": ["a", "b", "c"]}, "one or two entries, not 3"),
        ({**BASE, "seps": "a"}, "seps must be a list"),
        ({**BASE, "stop_token_ids": ["2"]}, "stop_token_ids must hold only entries that are an integer"),
        ({**BASE, "stop_token_ids": [True]}, "stop_token_ids must hold only entries that are an integer"),
        ({**BASE, "system_message": 1}, "system_message must be a string"),
        ({**BASE, "add_role_after_system_message": "no"}, "must be true or false"),
        ({**BASE, "messages": [["user"]]}, "pairs of a role and a content"),
        ({**BASE, "messages": [["user", 1]]}, "messages: a message's content must be"),
    ],
)
def test_a_bad_template_is_a_load_error(data: Any, reason: str) -> None:
    with pytest.raises(LoadError, match=rf"^dir/mlc-chat-config\.json: conv_template .*{reason}") as caught:
        ConversationTemplate.from_json(data, path="dir/mlc-chat-config.json")
    assert caught.value.path == "dir/mlc-chat-config.json"


@pytest.mark.parametrize("name", BUILTIN)
def test_common_templates_are_known_by_name(name: str) -> None:
    template = ConversationTemplate.from_json(name)
    text = template.render([U, A, U2])
    assert text.index("one") < text.index("two") < text.index("three")
    assert template.stop_strings or template.stop_token_ids


PUBLISHED = {
    "llama-2": "[INST] <<SYS>>\ns\n<</SYS>>\n\none [/INST] two </s><s>[INST] three [/INST]",
    "llama-3": "<|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "one<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\ntwo<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nthree<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral_default": "[INST] s\n\none [/INST] two</s>[INST] three [/INST]",
    "phi-3": "<|system|>\ns<|end|>\n<|user|>\none<|end|>\n<|assistant|>\ntwo<|end|>\n<|user|>\nthree<|end|>\n"
    "<|assistant|>\n",
    "qwen2": "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
    "<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n",
    "tinyllama_v1_0": "<|system|>\ns</s>\n<|user|>\none</s>\n<|assistant|>\ntwo</s>\n<|user|>\nthree</s>\n"
    "<|assistant|>\n",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_common_templates_write_the_published_formats(name: str) -> None:
    assert ConversationTemplate.from_json(name).render([S, U, A, U2]) == PUBLISHED[name]
