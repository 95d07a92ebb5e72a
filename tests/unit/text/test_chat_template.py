from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from support.text_files import CHATML, added_token, byte_level_tokenizer, write_json
from windlass.errors import InvalidRequestError, LoadError
from windlass.text.chat_template import ChatTemplate, read_chat_template
from windlass.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "he"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": "é<"}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CONTENT = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    config = {"eos_token": "<|im_end|>", "bos_token": None}
    return Tokenizer.from_directory(write_json(tmp_path, tokenizer=byte_level_tokenizer(), tokenizer_config=config))


def text_of(template: ChatTemplate, tokenizer: Tokenizer, messages: list[Any], **arguments: Any) -> str:
    """The prompt read back from its ids, special tokens included."""
    ids = template.encode(tokenizer, messages, **arguments)
    return b"".join(map(tokenizer.token_bytes, ids)).decode()


def test_a_prompt_is_the_rendered_text(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(CHATML, tokenizer=tokenizer)
    assert template.encode(tokenizer, [USER]) == [
        259, *b"user\n", 256, 260, *b"\n", 259, *b"assistant\n"
    ]  # fmt: skip


def test_special_tokens_are_variables(tokenizer: Tokenizer) -> None:
    source = "{{ eos_token }}{{ bos_token is defined }}{{ custom }}"
    assert ChatTemplate(source, tokenizer=tokenizer).render([USER], custom=1) == "<|im_end|>False1"
    given = ChatTemplate(source, special_tokens={"eos_token": "E", "bos_token": "B"})
    assert given.render([USER]) == "ETrue"


def test_template_arguments_reach_the_template_but_not_its_own_variables(tokenizer: Tokenizer) -> None:
    template = ChatTemplate("{{ enable_thinking }}{{ eos_token }}" + CONTENT, tokenizer=tokenizer)
    arguments = {"enable_thinking": "<|im_end|>"}
    ids = template.encode(tokenizer, [USER], template_kwargs=arguments)
    assert ids == [*tokenizer.encode("<|im_end|>"), 260, 256]
    for name in ("messages", "tools", "add_generation_prompt", "raise_exception", "eos_token"):
        with pytest.raises(InvalidRequestError, match=f"must not set {name}") as caught:
            template.encode(tokenizer, [USER], template_kwargs={name: "x"})
        assert caught.value.param == "chat_template_kwargs"


def test_absent_fields_are_not_there_and_content_is(tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}{{ m | tojson(sort_keys=true) }}{% endfor %}"
    message = {"role": "assistant", "name": None, "tool_calls": [], "refusal": None, "reasoning": "r"}
    assert text_of(ChatTemplate(source), tokenizer, [message]) == (
        '{"content": "", "reasoning": "r", "reasoning_content": "r", "role": "assistant"}'
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CONTENT, "a\nb"),
        ("{% for m in messages %}{% if m.content is string %}S{{ m.content }}{% else %}"
         "{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %}{% endfor %}", "[a][b]"),
    ],
)  # fmt: skip
def test_lists_of_parts_are_joined_unless_the_template_takes_lists(
    tokenizer: Tokenizer, source: str, expected: str
) -> None:
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert text_of(ChatTemplate(source), tokenizer, [{"role": "user", "content": content}]) == expected


def test_strings_become_lists_where_the_template_takes_only_lists(tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}{% for p in m.content %}[{{ p['text'] }}]{% endfor %}{% endfor %}"
    assert text_of(ChatTemplate(source), tokenizer, [USER]) == "[he]"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{{ c.function.arguments | tojson }}", '{"x": "é<"}'),
        ("{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}{% endfor %}", "x=é<"),
        ("{{ '' + c.function.arguments }}", '{"x": "é<"}'),
        ("{{ c.function.arguments }}", '{"x": "é<"}'),
    ],
)
@pytest.mark.parametrize("arguments", ['{"x": "é<"}', {"x": "é<"}])
def test_arguments_come_as_the_template_wants_them(
    tokenizer: Tokenizer, written: str, expected: str, arguments: Any
) -> None:
    source = "{% for m in messages %}{% for c in m.tool_calls %}" + written + "{% endfor %}{% endfor %}"
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert text_of(ChatTemplate(source), tokenizer, [USER, message]) == expected


@pytest.mark.parametrize(
    ("condition", "expected"), [("m.content is none", "call"), ("m.content == ''", "call"), ("true", "call")]
)
@pytest.mark.parametrize("content", [None, ""])
def test_content_beside_tool_calls_is_none_or_empty_as_the_template_wants_it(
    tokenizer: Tokenizer, condition: str, expected: str, content: str | None
) -> None:
    source = (
        "{% for m in messages %}{% if m.tool_calls and " + condition + " %}call{{ m.tool_calls | tojson }}"
        "{% else %}{{ m.content + '' }}{% endif %}{% endfor %}"
    )
    message = {"role": "assistant", "content": content, "tool_calls": [CALL]}
    assert text_of(ChatTemplate(source), tokenizer, [USER, message]).startswith("he" + expected)


@pytest.mark.parametrize(("arguments", "shown"), [("", "{}"), (None, "{}"), ("  ", "{}")])
def test_no_arguments_are_an_empty_object(tokenizer: Tokenizer, arguments: str | None, shown: str) -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    )
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    assert text_of(ChatTemplate(source), tokenizer, [{"role": "assistant", "tool_calls": [call]}]) == shown


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one message"),
        ("hello", "must be a list"),
        ([{"content": "x"}], r"messages\[0\] must be an object with a role"),
        ([USER, "x"], r"messages\[1\] must be an object"),
        ([{"role": "user", "content": 3}], "a string or a list of text parts"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "reads text only"),
        ([{"role": "user", "content": [{"type": "text"}]}], "reads text only"),
        ([{"role": "assistant", "tool_calls": "x"}], "tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": [{"id": "x"}]}], "a function that has a name"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "not valid JSON"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 9999}}]}], "not valid"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}], "a JSON object"),
        ([{"role": "user", "content": "a\ud800"}], "lone surrogate"),
    ],
)
def test_malformed_messages_are_refused(tokenizer: Tokenizer, messages: Any, reason: str) -> None:
    template = ChatTemplate(CHATML, tokenizer=tokenizer)
    with pytest.raises(InvalidRequestError, match=reason):
        template.encode(tokenizer, messages)


def test_messages_are_not_changed(tokenizer: Tokenizer) -> None:
    message = {"role": "developer", "content": None, "tool_calls": [CALL], "name": None}
    before = repr(message)
    ChatTemplate(CONTENT).encode(tokenizer, [USER, message])
    assert repr(message) == before


def test_developer_is_system_unless_the_template_knows_it(tokenizer: Tokenizer) -> None:
    messages = [{"role": "developer", "content": "d"}]
    roles = "{% for m in messages %}{{ m.role }}{% endfor %}"
    assert text_of(ChatTemplate(roles), tokenizer, messages) == "system"
    assert text_of(ChatTemplate(roles + "{# developer #}"), tokenizer, messages) == "developer"


def test_tools_are_shown_or_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="no tool calling") as caught:
        ChatTemplate(CHATML).encode(tokenizer, [USER], tools=[TOOL])
    assert caught.value.param == "tools"
    template = ChatTemplate("{% if tools is not none %}{{ tools | tojson }}{% endif %}" + CONTENT)
    assert template.supports_tools
    assert "parameters" in text_of(template, tokenizer, [USER], tools=[TOOL])
    assert text_of(template, tokenizer, [USER], tools=[]) == "he"
    with pytest.raises(InvalidRequestError, match=r"tools\[0\] must be a function tool with a name"):
        template.encode(tokenizer, [USER], tools=[{"type": "web_search"}])


def test_the_template_for_tools_is_used_with_tools(tokenizer: Tokenizer) -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "{{ tools | tojson }}", "rag": "{% if %}"})
    assert text_of(template, tokenizer, [USER]) == "plain"
    assert text_of(template, tokenizer, [USER], tools=[TOOL]).startswith('[{"type"')


def test_a_template_that_cannot_take_none_for_tools_gets_nothing(tokenizer: Tokenizer) -> None:
    source = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}" + CONTENT
    assert text_of(ChatTemplate(source), tokenizer, [USER]) == "he"


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ("{{ m.content }}<|im_end|>", ((), (260,))),
        ("{{ m.content }} <|im_end|>\n", ((), (260,))),
        ("{{ m.content }}{% if loop.last %}<|endoftext|>{% else %}<|im_end|>{% endif %}", ((), (258,))),
        ("{{ m.content }}{% if not loop.last %}<|im_end|>{% endif %}", ((), (260,))),
        ("{{ m.content }}<end>\n", ((), (261,))),
        ("{{ m.content }}<|eot|>", (("<|eot|>",), ())),
        ("{{ m.role }}: {{ m.content }}\n", ((), ())),
        ("{{ raise_exception('no') }}", ((), ())),
    ],
)
def test_the_end_of_turn_is_what_follows_an_answer(tmp_path: Path, turn: str, expected: Any) -> None:
    added = [added_token(258 + i, text) for i, text in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))]
    added.append(added_token(261, "<end>", special=False))
    tokenizer = Tokenizer.from_directory(write_json(tmp_path, tokenizer=byte_level_tokenizer(added_tokens=added)))
    template = ChatTemplate("{% for m in messages %}" + turn + "{% endfor %}", tokenizer=tokenizer)
    assert (template.stop_strings, template.stop_token_ids) == expected


def test_the_clock_is_asked_at_each_render() -> None:
    times = iter([dt.datetime(2024, 7, 26), dt.datetime(2024, 7, 27)])
    template = ChatTemplate("{% if today is defined %}{{ strftime_now('%d') }}{% endif %}", clock=lambda: next(times))
    assert [template.render([USER], today=1) for _ in range(2)] == ["26", "27"]


def test_where_templates_live(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert read_chat_template(tmp_path, tokenizer) is None

    def shown(**arguments: Any) -> str:
        template = read_chat_template(tmp_path, tokenizer)
        assert template is not None
        return template.render([USER], **arguments)

    write_json(tmp_path, chat_template={"chat_template": "processor"})
    assert shown() == "processor"
    write_json(tmp_path, tokenizer_config={"chat_template": "config"})
    assert shown() == "config"
    named = [{"name": "default", "template": "first"}, {"name": "tool_use", "template": "tools"}]
    write_json(tmp_path, tokenizer_config={"chat_template": named})
    assert (shown(), shown(tools=[TOOL])) == ("first", "tools")
    write_json(tmp_path, tokenizer_config={"chat_template": [{"name": "odd", "template": "only"}]})
    assert shown() == "only"
    (tmp_path / "chat_template.jinja").write_text("file é", encoding="utf-8")
    assert (shown(), shown(tools=[TOOL])) == ("file é", "file é")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("file for tools")
    assert (shown(), shown(tools=[TOOL])) == ("file é", "file for tools")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if %}", "the chat template is not valid, line 1"),
        (5, "must be a string, or a list"),
        ([{"name": "default"}], "must be a string, or a list"),
        ([{"name": "a", "template": ""}, {"name": "b", "template": ""}], "no chat template named 'default', only a, b"),
    ],
)
def test_a_bad_template_names_its_file(tmp_path: Path, tokenizer: Tokenizer, source: Any, reason: str) -> None:
    write_json(tmp_path, tokenizer_config={"chat_template": source})
    with pytest.raises(LoadError, match=rf"tokenizer_config\.json: .*{reason}"):
        read_chat_template(tmp_path, tokenizer)


def test_a_template_file_that_is_not_text_is_a_load_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(LoadError, match=r"chat_template\.jinja: cannot be read as UTF-8"):
        read_chat_template(tmp_path, tokenizer)


def test_every_real_template_takes_openai_messages(data_dir: Path, qwen2: Tokenizer) -> None:
    """With the habits found out, the conversations with tools that the raw renders refuse are accepted as well."""
    call = {"id": "call00001", "type": "function", "function": {"name": "ipython", "arguments": '{"code": "1+1"}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "compute"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "name": "ipython", "content": "2"},
        {"role": "assistant", "content": "It is two."},
        {"role": "user", "content": "thanks"},
    ]
    code = {"type": "string", "description": "Code."}
    parameters = {"type": "object", "properties": {"code": code}, "required": ["code"]}
    tool = {"type": "function", "function": {"name": "ipython", "description": "Runs.", "parameters": parameters}}
    refused = {}
    for path in sorted((data_dir / "templates").glob("*.jinja")):
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        template = ChatTemplate(path.read_text(encoding="utf-8"), tokenizer=qwen2, special_tokens=tokens, origin=path)
        try:
            text = qwen2.decode(template.encode(qwen2, messages, tools=[tool] if template.supports_tools else None))
            assert "compute" in text
            assert "thanks" in text
        except InvalidRequestError as error:
            refused[path.stem] = str(error).rpartition(": ")[2]
    assert refused == {
        "Kimi-K2-Instruct": "access to attribute 'append' of 'list' object is unsafe.",
        "google-gemma-2-2b-it": "Conversation roles must alternate user/assistant/user/assistant/...",
    }
