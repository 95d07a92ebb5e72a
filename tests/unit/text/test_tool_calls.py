from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.text.tool_calls import ToolCallScanner


def read(text: str, size: int = 1) -> tuple[ToolCallScanner, str, int]:
    """The scanner after ``text`` in pieces, the arguments it gave, and how much it read."""
    scanner = ToolCallScanner()
    arguments, position = "", 0
    while position < len(text) and not scanner.done and not scanner.failed:
        position += scanner.scan(text[position : position + size], 0)
        if scanner.started:
            arguments += scanner.take_arguments()
    return scanner, arguments, position


@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    arguments=st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=6), max_size=3),
    name_first=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
    size=st.integers(1, 30),
)
def test_a_call_is_read_in_either_order(
    name: str, arguments: dict[str, object], name_first: bool, indent: int | None, size: int
) -> None:
    pairs = [("name", name), ("arguments", arguments)]
    text = json.dumps(dict(pairs if name_first else pairs[::-1]), indent=indent)
    scanner, given_arguments, end = read(text + " rest", size)
    assert scanner.done
    assert scanner.name == name
    assert json.loads(given_arguments) == arguments
    assert given_arguments in text
    assert end == len(text)


def test_the_arguments_come_as_soon_as_they_are_known_to_be_arguments() -> None:
    scanner = ToolCallScanner()
    scanner.scan('{"name": "f", "arguments": ', 0)
    assert not scanner.started
    scanner.scan('{"a": ', 0)
    assert scanner.started
    assert scanner.take_arguments() == '{"a": '
    assert scanner.take_arguments() == ""
    scanner.scan('"b', 0)
    assert scanner.take_arguments() == '"b'


def test_arguments_before_the_name_wait_for_it() -> None:
    scanner = ToolCallScanner()
    scanner.scan('{"arguments": {"a": 1}, "na', 0)
    assert not scanner.started
    scanner.scan('me": "f"', 0)
    assert scanner.started
    assert scanner.take_arguments() == '{"a": 1}'


@pytest.mark.parametrize(
    ("text", "read_until"),
    [
        ("[]", ""),
        ("{}", "{"),
        ("{'name'", "{"),
        ('{"nome": "f"', '{"nome"'),
        ('{"name": "f"}', '{"name": "f"'),
        ('{"name": "f", "name": "g"', '{"name": "f", "name"'),
        ('{"arguments": {}, "arguments": {}', '{"arguments": {}, "arguments"'),
        ('{"name": ""', '{"name": ""'),
        ('{"name": "\\ud800"', '{"name": "\\ud800"'),
        ('{"name": 1', '{"name": '),
        ('{"name": "a\n"', '{"name": "a'),
        ('{"name": "f", "arguments": "{}"', '{"name": "f", "arguments": '),
        ('{"name": "f", "arguments": null', '{"name": "f", "arguments": '),
        ('{"name": "f", "arguments": {]', '{"name": "f", "arguments": {'),
        ('{"name": "f", "arguments": {}, }', '{"name": "f", "arguments": {}, '),
        ('{"name" "f"', '{"name" '),
        ('{"name": "f" "arguments"', '{"name": "f" '),
        ('{"name": \0', '{"name": '),
    ],
)
def test_anything_else_fails_where_it_goes_wrong(text: str, read_until: str) -> None:
    scanner, _, end = read(text + "  ")
    assert scanner.failed
    assert not scanner.done
    assert text[:end] == read_until
