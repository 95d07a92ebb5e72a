"""Harmony's answers taken apart, and its prompts."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.answer_parts import Parts, merged
from support.chat_answers import INFO, usage_of
from support.text_files import byte_level_tokenizer, write_json
from windlass.engine.request import FinishReason
from windlass.serve.chat_format import ChatFormat
from windlass.serve.mailbox import Piece
from windlass.text.chat_template import ChatTemplate
from windlass.text.harmony import MARKS, HarmonyParser
from windlass.text.text_model import TextModel

CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'


def marked(text: str) -> str:
    for name, mark in MARKS.items():
        text = text.replace(name, mark)
    return text


def parse(pieces: Iterable[str], **options: bool) -> Parts:
    parser = HarmonyParser(**{"tools": True, **options})
    events = [event for piece in pieces for event in parser.push(piece)]
    return merged(events + parser.flush())


CASES: dict[str, tuple[str, Parts]] = {
    "reasoning and content": (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Four.<|return|>",
        [("reasoning", "Hm."), ("content", "Four.")],
    ),
    "a call": (
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant" + CALL,
        [("reasoning", "Look."), ("start 0", "f"), ("arguments", '{"a": 1}'), ("end 0",)],
    ),
    "the recipient in the role": (
        ' to=functions.a.b<|channel|>commentary json<|message|> {"x": "<y>"} <|call|>',
        [("start 0", "a.b"), ("arguments", '{"x": "<y>"}'), ("end 0",)],
    ),
    "a preamble": (
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant" + CALL,
        [("content", "I look."), ("start 0", "f"), ("arguments", '{"a": 1}'), ("end 0",)],
    ),
    "the answer ends without its mark": (
        CALL.removesuffix("<|call|>"),
        [("start 0", "f"), ("arguments", '{"a": 1}'), ("end 0",)],
    ),
    "two messages of a kind": (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
        "<|start|>assistant<|channel|>final<|message|>c<|end|>",
        [("reasoning", "a\nb"), ("content", "c")],
    ),
    "a built-in tool": (
        "<|channel|>commentary to=browser.search code<|message|>{}<|call|>",
        [("reasoning", "{}")],
    ),
    "two calls": (
        f"{CALL}<|start|>assistant{CALL}",
        [
            ("start 0", "f"),
            ("arguments", '{"a": 1}'),
            ("end 0",),
            ("start 1", "f"),
            ("arguments", '{"a": 1}'),
            ("end 1",),
        ],
    ),
    "arguments that are none": (
        "<|channel|>commentary to=functions.f<|message|>what?<|call|>",
        [("content", "what?")],
    ),
    "no arguments": ("<|channel|>commentary to=functions.f<|message|> <|call|>", [("content", " ")]),
    "arguments that break": (
        '<|channel|>commentary to=functions.f<|message|>{"a": x} more<|end|>',
        [("start 0", "f"), ("arguments", '{"a": '), ("broken 0", '{"a": x} more')],
    ),
    "arguments that are cut off": (
        '<|channel|>commentary to=functions.f<|message|>{"a"',
        [("start 0", "f"), ("arguments", '{"a"'), ("broken 0", '{"a"')],
    ),
    "no channel": ("<|message|>Hi", [("content", "Hi")]),
    "an unknown channel": ("<|channel|>song<|message|>La", [("content", "La")]),
    "no format at all": ("Hi there", [("content", "Hi there")]),
    "no format at length": ("x" * 1000, [("content", "x" * 1000)]),
    "text between messages": ("<|message|>a<|end|> <|start|>assistant<|message|>b<|end|>c", [("content", "a\nbc")]),
    "a message without an end": (
        "<|channel|>analysis<|message|>a<|channel|>final<|message|>b",
        [("reasoning", "a"), ("content", "b")],
    ),
    "marks in plain text": ("<|message|><|end|>".replace("<|end|>", "<|end |>"), [("content", "<|end |>")]),
    "only a header": ("<|channel|>analysis", []),
    "nothing": ("", []),
}


@pytest.mark.parametrize("name", CASES)
def test_answers(name: str) -> None:
    text, parts = CASES[name]
    assert parse([marked(text)]) == parts
    if "broken" not in str(parts):
        assert parse(marked(text)) == parts


def test_without_tools_a_call_is_content() -> None:
    assert parse([marked(CALL)], tools=False) == [("content", '{"a": 1}')]


def test_without_parallel_calls_the_first_one_counts() -> None:
    text = marked(f"{CALL}<|start|>assistant{CALL}")
    assert parse([text], parallel_tool_calls=False) == parse([marked(CALL)])
    broken = marked(CALL + "<|start|>assistant" + CALL.replace('{"a": 1}', '{"a": '))
    assert parse([broken], parallel_tool_calls=False) == [*parse([marked(CALL)]), ("content", '{"a": ')]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([*MARKS.values(), *MARKS.values(), "analysis", " to=functions.f", '{"a":', "1}", "x ", "\n"]),
        max_size=25,
    ),
    st.data(),
)
def test_cuts_do_not_matter(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]

    def joined(found: Parts) -> Parts:
        """A broken call's source depends on when it was noticed, but not what comes of it all."""
        out: Parts = []
        for kind, *rest in found:
            is_text = kind == "content" or kind.startswith("broken")
            before = out.pop()[1] if is_text and out and out[-1][0] == "content" else ""
            out.append(("content", before + rest[0]) if is_text else (kind, *rest))
        return out

    assert joined(parse(pieces)) == joined(parse([text]))


def test_the_golden_of_the_streamable_parser(data_dir: Path) -> None:
    text = (data_dir / "harmony" / "test_streamable_parser.txt").read_text(encoding="utf-8")
    ((kind, reasoning),) = parse(marked(text))
    assert kind == "reasoning"
    assert reasoning.startswith('User asks "Who is')
    assert reasoning.endswith('{"result": "https://openai.com/"}')


USER = {"role": "user", "content": "What is the capital of the largest country in the world?"}
ROBOT = {"role": "system", "content": "Answer the user's questions like a robot."}
PROMPTS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "simple_convo": ([{"role": "user", "content": "What is 2 + 2?"}], {}),
    **{
        f"simple_convo_{effort}_effort": ([ROBOT, USER], {"reasoning_effort": effort})
        for effort in ("low", "medium", "high")
    },
    **{
        f"simple_convo_{effort}_effort_no_instruction": ([USER], {"reasoning_effort": effort})
        for effort in ("low", "medium", "high")
    },
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_the_goldens(data_dir: Path, name: str) -> None:
    """But for what the chat template writes otherwise: the date, and blank lines behind the instructions."""
    source = (data_dir / "templates" / "openai-gpt-oss-120b.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(source, clock=lambda: dt.datetime(2024, 7, 26))
    messages, arguments = PROMPTS[name]
    text = template.render(template.adapt(messages), **arguments)
    text = text.replace("Current date: 2024-07-26\n", "").replace("\n\n<|end|>", "<|end|>")
    assert text == (data_dir / "harmony" / f"test_{name}.txt").read_text(encoding="utf-8")


@pytest.fixture
def gpt_oss(data_dir: Path, tmp_path: Path) -> TextModel:
    """A small vocabulary with the marks, and gpt-oss's template."""
    source = (data_dir / "templates" / "openai-gpt-oss-120b.jinja").read_text(encoding="utf-8")
    (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    write_json(tmp_path, tokenizer=byte_level_tokenizer(specials=list(MARKS)), tokenizer_config={})
    return TextModel.load(tmp_path, {}, None)


def test_from_tokens_to_parts(gpt_oss: TextModel) -> None:
    assert gpt_oss.template is not None
    assert gpt_oss.template.supports_tools
    ids = gpt_oss.tokenizer.encode_template("<|channel|>analysis<|message|>é<|end|><|start|>assistant" + CALL)
    detokenizer = gpt_oss.detokenizer()
    parser = gpt_oss.answer_parser([], tools=True, parallel_tool_calls=True)
    events = [event for token_id in ids for event in parser.push(detokenizer.push(token_id))]
    assert merged(events + parser.flush()) == [
        ("reasoning", "é"),
        ("start 0", "f"),
        ("arguments", '{"a": 1}'),
        ("end 0",),
    ]
    # A text completion shows no marks, nor does the text of ids.
    assert gpt_oss.detokenizer([65]).push(ids[0]) == ""
    assert gpt_oss.decode(ids[:1]) == ""
    assert {gpt_oss.tokenizer.added_token_id(name) for name in ("<|call|>", "<|return|>")} == gpt_oss.stop_token_ids


def test_an_answer_as_openais_objects() -> None:
    text = marked(
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
    )
    text += marked("<|start|>assistant" + CALL.removesuffix("<|call|>"))  # the token that ends an answer is not shown
    form = ChatFormat(INFO, new_parser=lambda: HarmonyParser(tools=True), with_logprobs=False)
    whole = form.response([[Piece(0, text, 9, FinishReason.STOP)]], usage_of([text]))
    (choice,) = whole.choices
    assert (choice.message.reasoning_content, choice.message.content) == ("Hm.", "I look.")
    assert [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()] == [
        ("f", '{"a": 1}')
    ]
    assert choice.finish_reason == "tool_calls"


def test_a_conversation_with_calls_comes_back(gpt_oss: TextModel) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "Hi <|end|>"},
        {"role": "assistant", "content": None, "reasoning_content": "I call.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ]
    text = gpt_oss.write_chat(messages, tools=[{"type": "function", "function": {"name": "f", "description": "F."}}])
    assert "<|start|>assistant<|channel|>analysis<|message|>I call.<|end|>" in text
    assert '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>' in text
    assert text.endswith(
        '<|start|>functions.f to=assistant<|channel|>commentary<|message|>"2"<|end|><|start|>assistant'
    )
