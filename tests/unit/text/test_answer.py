from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.answer_parts import Parts, merged
from windlass.text.answer import AnswerParser, ends_in_reasoning, knows_thinking
from windlass.text.answer_events import (
    Answer,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallEnded,
    ToolCallStarted,
)


def parse(pieces: Iterable[str], *, tools: bool = True, reasoning: bool = True, **options: bool) -> Parts:
    parser = AnswerParser(tools=tools, reasoning=reasoning, **options)
    events = [event for piece in pieces for event in parser.push(piece)]
    return merged(events + parser.flush())


def answer(text: str, **options: bool) -> Answer:
    parser = AnswerParser(**{"tools": True, "reasoning": True, **options})
    whole = Answer()
    for event in parser.push(text) + parser.flush():
        whole.add(event)
    return whole


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_reasoning_content_and_calls() -> None:
    text = "<think>\nHm.\n\nRight.\n</think>\n\nLet me look.\n" + call("f", '{"a": 1}') + "\n" + call("g", "{}")
    assert parse([text]) == [
        ("reasoning", "Hm.\n\nRight."),
        ("content", "Let me look."),
        ("start 0", "f"),
        ("arguments", '{"a": 1}'),
        ("end 0",),
        ("start 1", "g"),
        ("arguments", "{}"),
        ("end 1",),
    ]
    whole = answer(text)
    assert (whole.reasoning, whole.content) == ("Hm.\n\nRight.", "Let me look.")
    assert [(each.name, each.arguments) for each in whole.tool_calls] == [("f", '{"a": 1}'), ("g", "{}")]
    assert all(re.fullmatch("call_[0-9a-f]{24}", each.id) for each in whole.tool_calls)
    assert whole.tool_calls[0].id != whole.tool_calls[1].id


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\n\n</think>\n\nHi", [("content", "Hi")]),
        ("\n\n<think>a</think>b", [("reasoning", "a"), ("content", "b")]),
        ("<think>never closed\n", [("reasoning", "never closed\n")]),
        ("<think>a <think> b <tool_call> c</think>d", [("reasoning", "a <think> b <tool_call> c"), ("content", "d")]),
        ("The tag <think> opens", [("content", "The tag <think> opens")]),
        ("\n\nThe </think> tag", [("content", "\n\nThe </think> tag")]),
        ("<thin", [("content", "<thin")]),
        ("<think>a</thi", [("reasoning", "a</thi")]),
        ("<think>a\n</thi</think>\n    indented", [("reasoning", "a\n</thi"), ("content", "    indented")]),
        ("a\n\n", [("content", "a\n\n")]),
        ("\n", [("content", "\n")]),
        ("", []),
    ],
)
def test_reasoning(text: str, parts: Parts) -> None:
    assert parse([text]) == parts
    assert parse(text) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Hm.\n</think>\n\nHi", [("reasoning", "Hm."), ("content", "Hi")]),
        ("\n<think>\nHm.</think>Hi", [("reasoning", "Hm."), ("content", "Hi")]),
        ("\n\nHm", [("reasoning", "Hm")]),
        ("never closed", [("reasoning", "never closed")]),
        ("<thi", [("reasoning", "<thi")]),
        ("</think>\n\nHi", [("content", "Hi")]),
    ],
)
def test_an_answer_may_start_in_reasoning(text: str, parts: Parts) -> None:
    assert parse([text], starts_in_reasoning=True) == parts
    assert parse(text, starts_in_reasoning=True) == parts


def test_markers_are_content_unless_asked_for() -> None:
    text = "<think>\na\n</think>\n" + call("f", "{}")
    assert parse([text], tools=False, reasoning=False) == [("content", text)]
    assert parse([text], tools=False, reasoning=False, starts_in_reasoning=True) == [("content", text)]
    assert parse([text], tools=False) == [("reasoning", "a"), ("content", call("f", "{}"))]
    assert parse([text], reasoning=False)[0] == ("content", "<think>\na\n</think>")


def test_without_anything_to_find_nothing_is_held_back() -> None:
    parser = AnswerParser(tools=False, reasoning=False)
    for piece in ["a\n", "\n", "<tool", "<thi"]:
        assert parser.push(piece) == [ContentText(piece)]
    assert parser.flush() == []


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nhello\n</tool_call>",
        "<tool_call>",
        "<tool_ca",
        'text\n\n<tool_call>\n\n{"name": "f"}</tool_call>\n\nmore\n',
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}, "nam',
        '<tool_call>{"name": "f", "arguments": ',
        "<tool_call><tool_call>\n<tool_call>",
        "a </tool_call>",
    ],
)
def test_a_malformed_or_unfinished_call_is_given_back_as_content(text: str) -> None:
    assert parse([text]) == [("content", text)]
    assert parse(text) == [("content", text)]


def test_a_call_after_a_malformed_one_is_found() -> None:
    assert parse(["<tool_call>\n<tool_call>x<tool_call>\n{<tool_call>" + call("f", "{}")]) == [
        ("content", "<tool_call>\n<tool_call>x<tool_call>\n{<tool_call>"),
        ("start 0", "f"),
        ("arguments", "{}"),
        ("end 0",),
    ]


@pytest.mark.parametrize(
    ("begun", "read", "rest"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1', '{"a": 1', ""),
        ('\n<tool_call>{"name": "f", "arguments": {"a": tru', '{"a": tru', 'th"}}</tool_call> x'),
        ('<tool_call>{"name": "f", "arguments": {"a": "b', '{"a": "b', "\nc\n"),
        ('<tool_call>{"name": "f", "arguments": {}', "{}", ""),
        ('<tool_call>{"arguments": {}, "name": "f", ', "{}", ", }"),
    ],
)
def test_a_call_that_breaks_after_it_was_passed_on(begun: str, read: str, rest: str) -> None:
    expected: Parts = [("start 0", "f"), ("arguments", read), ("broken 0", begun)]
    expected += [("content", rest)] if rest else []
    assert parse([begun + rest]) == expected
    assert parse(begun + rest) == expected
    whole = answer(begun + rest)
    assert (whole.content, whole.tool_calls) == (begun + rest, [])


def test_newlines_after_a_broken_call_are_content() -> None:
    begun = '<tool_call>{"name": "f", "arguments": {"a": "b'
    assert parse(["<think>a</think>" + begun + "\n\nc"])[-1] == ("content", "\n\nc")


def test_after_a_broken_call_the_next_one_is_found() -> None:
    broken = '<tool_call>{"name": "f", "arguments": {"a": "never closed'
    whole = answer(broken + "\n" + call("g", "{}"))
    assert whole.content == broken
    assert [(each.name, each.arguments) for each in whole.tool_calls] == [("g", "{}")]


@pytest.mark.parametrize("end", ["", "\n", "\n</tool_", "\n</tool_call>", "</tool_call>\n\n"])
def test_a_missing_end_marker_is_forgiven(end: str) -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}' + end
    assert parse(text) == [("start 0", "f"), ("arguments", "{}"), ("end 0",)]


@pytest.mark.parametrize("between", ["", "\n", "</tool_call>", "\n\n</tool_call>\n\n"])
def test_calls_in_a_row(between: str) -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}' + between + call("g", "{}")
    assert parse([text])[3:] == [("start 1", "g"), ("arguments", "{}"), ("end 1",)]


def test_text_after_a_call_is_content() -> None:
    assert parse([call("f", "{}") + "\nDone.\n"])[3:] == [("content", "Done.\n")]
    assert parse(['<tool_call>{"name": "f", "arguments": {}}}\n</tool_call>'])[3:] == [("content", "}\n</tool_call>")]


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a": "</tool_call>", "b": "<tool_call>"}',
        '{"a": {"b": [{"c": "}"}, "]", "{"]}}',
        '{"\\u0022": "\\"}</tool_call>\\\\"}',
        '{ "ключ" : "значение 🛠" }',
        '{"a": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
def test_arguments_are_the_exact_text(arguments: str) -> None:
    expected = [("start 0", "f"), ("arguments", arguments), ("end 0",)]
    assert parse([call("f", arguments)]) == expected
    assert parse(call("f", arguments)) == expected


def test_without_parallel_calls_the_first_stays() -> None:
    text = "A\n" + call("f", "{}") + "\n" + call("g", '{"a": 1}') + "\nB" + "<tool_call>{]</tool_call>"
    assert parse([text], parallel_tool_calls=False) == [
        ("content", "A"),
        ("start 0", "f"),
        ("arguments", "{}"),
        ("end 0",),
        ("content", "B<tool_call>{]</tool_call>"),
    ]


def test_arguments_stream() -> None:
    parser = AnswerParser(tools=True, reasoning=False)
    assert parser.push('<tool_call>\n{"name": "f", "arguments": ') == []
    started, begun = parser.push('{"city": "Par')
    assert isinstance(started, ToolCallStarted)
    assert (started.index, started.name) == (0, "f")
    assert begun == ToolCallArguments(0, '{"city": "Par')
    assert parser.push('is"}') == [ToolCallArguments(0, 'is"}')]
    assert parser.push("}") == [ToolCallEnded(0)]
    assert parser.push("\n</tool_call>") == []
    assert parser.flush() == []


# Any text at all.

fragments = st.sampled_from(
    [
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_call>\n{", "}\n</tool_call>", "<", "</", "\n"),
        *(
            '{"name": "f", "arguments": ',
            '{"name"',
            '"arguments": ',
            "{}",
            '{"a": [1, "x"]}',
            "}",
            '"',
            "\\",
            "ж",
            "a ",
        ),
        call("f", '{"a": "</tool_call>"}'),
        call("g", "{}"),
    ]
)
texts = st.builds("".join, st.lists(fragments, max_size=12))
options = st.fixed_dictionaries(
    {name: st.booleans() for name in ("tools", "reasoning", "starts_in_reasoning", "parallel_tool_calls")}
)


def cut(text: str, positions: list[int]) -> list[str]:
    bounds = [0, *sorted(position % (len(text) + 1) for position in positions), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


@settings(max_examples=300)
@given(text=texts, positions=st.lists(st.integers(0), max_size=8), options=options)
def test_any_cutting_gives_the_same(text: str, positions: list[int], options: dict[str, bool]) -> None:
    assert parse(cut(text, positions), **options) == parse([text], **options)
    assert parse(text, **options) == parse([text], **options)


@settings(max_examples=300)
@example(text="<think>a</think>b" + call("f", "{}"), options={"tools": True, "reasoning": True})
@given(text=texts, options=options)
def test_nothing_is_lost_or_given_twice(text: str, options: dict[str, bool]) -> None:
    """All that the events leave out is markers, newlines beside them, and what frames a call's arguments."""
    if not options.get("parallel_tool_calls", True):
        options = {**options, "parallel_tool_calls": True}
    parts = parse([text], **options)
    frame = r'\s*(\{\s*"name"\s*:\s*"[^"]*"\s*,\s*"arguments"\s*:\s*|)'
    pattern = r"\n*(<think>\n*)?" if options["reasoning"] else ""
    for index, part in enumerate(parts):
        if part[0] == "reasoning":
            pattern += re.escape(part[1])
        elif part[0] == "content":
            pattern += r"\n*(</think>)?\n*" if options["reasoning"] else ""
            pattern += re.escape(part[1])
        elif part[0].startswith("start"):
            pattern += rf"\n*(</think>)?\n*<tool_call>{frame}"
        elif part[0] == "arguments":
            pattern += re.escape(part[1])
        elif part[0].startswith("end"):
            pattern += r"\s*\}\n*(</tool_call>)?\n*"
        else:
            source = parts[index - 1][1] if parts[index - 1][0] == "arguments" else ""
            assert source in part[1]
            assert part[1] in text
            pattern += r"[\s,]*(\"[^\"]*\")?"
    pattern += r"\n*(</think>)?\n*(</tool_call|</tool_cal|</tool_ca|</tool_c|</tool_|</tool|</too|</to|</t|</|<)?"
    assert re.fullmatch(pattern, text), parts


@given(text=texts, options=options)
def test_the_whole_answer_keeps_every_broken_call(text: str, options: dict[str, bool]) -> None:
    whole = answer(text, **options)
    for each in whole.tool_calls:
        json.loads(each.arguments)
    assert options["tools"] or not whole.tool_calls
    assert options["reasoning"] or not whole.reasoning
    assert options["parallel_tool_calls"] or len(whole.tool_calls) <= 1
    if not options["tools"] and not options["reasoning"]:
        assert whole.content == text


@settings(max_examples=200)
@given(text=texts, options=options)
def test_nothing_that_cannot_be_part_of_a_marker_is_held_back(text: str, options: dict[str, bool]) -> None:
    parser = AnswerParser(**{**options, "tools": False})
    shown = "".join(event.text for event in parser.push(text) if isinstance(event, (ContentText, ReasoningText)))
    rest = "".join(event.text for event in parser.flush() if isinstance(event, (ContentText, ReasoningText)))
    markers = ("<think>", "</think>")
    held = rest.lstrip("\n")
    assert held == "" or any(marker.startswith(held) and marker != held for marker in markers)
    assert shown + rest in text or options["reasoning"]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 50_000,
        "<" * 250_000,
        "\n" * 250_000,
        "<tool_call>{" * 30_000,
        ('<tool_call>{"arguments":{"' * 20_000),
        call("f", '{"a":' * 25_000 + "1" + "}" * 25_000) * 3,
        "<think>" * 25_000 + "</think" * 25_000,
        '<tool_call>{"name": "' + "x" * 250_000,
        call("f", "{}") * 5_000,
    ],
    ids=lambda text: text[:30],
)
def test_time_is_linear(text: str) -> None:
    started = time.thread_time()
    parse([text])
    parse(text[index : index + 5] for index in range(0, len(text), 5))
    assert time.thread_time() - started < 3.75


def test_which_templates_think() -> None:
    assert knows_thinking("{{ '<think>\n' }}")
    assert not knows_thinking("{{ message.content }}")
    assert ends_in_reasoning("user\nHi<think>\n")
    assert not ends_in_reasoning("user\n<think>\nassistant\n")
    assert not ends_in_reasoning("<think>\n\n</think>\n\n")


def test_real_templates(data_dir: Path) -> None:
    expected = {"Qwen-Qwen3-0.6B": True, "Qwen-Qwen2.5-7B-Instruct": False, "HuggingFaceTB-SmolLM3-3B": True}
    for name, thinks in expected.items():
        source = (data_dir / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
        assert knows_thinking(source) == thinks
