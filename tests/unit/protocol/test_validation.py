"""Dictionaries from outside: a refusal says what is wrong, of all the ways in which it is."""

from __future__ import annotations

import time
from typing import Annotated, Any

import pytest
from pydantic import ConfigDict, Field, with_config
from typing_extensions import Required, TypedDict

from windlass.errors import InvalidRequestError
from windlass.protocol.arguments import ChatArguments, CompletionArguments
from windlass.protocol.messages_api import MessagesBody
from windlass.protocol.responses_api import ResponsesBody
from windlass.protocol.text_arguments import ConversationFields, DetokenizeFields, TokenizeFields
from windlass.protocol.validation import validate

MESSAGE = {"role": "user", "content": "Hi"}


@with_config(ConfigDict(extra="forbid"))
class Thing(TypedDict, total=False):
    """What the tests check."""

    text: Required[str | Annotated[list[dict[str, Any]], Field(min_length=1)]]
    size: Annotated[int, Field(ge=1)]
    more: dict[str, int]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "'text' is required"),
        ({"text": "a", "no": 1}, "unknown argument 'no'; accepted are more, size, text"),
        ({"text": 1}, "text: Input should be a valid string or Input should be a valid list"),
        ({"text": []}, "text: List should have at least 1 item after validation, not 0"),
        ({"text": ["a"]}, "text[0]: Input should be a valid dictionary"),
        ({"text": "a", "size": 0}, "size: Input should be greater than or equal to 1"),
        ({"text": 1, "size": 0}, "text: Input should be a valid string or Input should be a valid list"),
        ({"text": "a", "size": "1"}, "size: Input should be a valid integer"),
    ],
)
def test_what_a_refusal_says(value: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validate(Thing, value)
    assert str(caught.value) == message


def test_where_a_part_stands_is_its_param() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validate(Thing, {"text": "a", "size": 0}, at="things[3]")
    assert caught.value.param == "things[3]"
    assert str(caught.value) == "things[3].size: Input should be greater than or equal to 1"


MANY = 300_000


@pytest.mark.parametrize(
    ("kind", "value", "param"),
    [
        (Thing, {f"name {i}": 1 for i in range(MANY)}, "name 0"),
        (Thing, {"text": "a", "more": {str(i): "x" for i in range(MANY)}}, "more"),
        (ChatArguments, {"messages": [{}] * MANY}, "messages"),
        (ChatArguments, {"messages": [MESSAGE], "logit_bias": {str(i): "x" for i in range(MANY)}}, "logit_bias"),
        (CompletionArguments, {"prompt": [-1] * MANY}, "prompt"),
        (CompletionArguments, {"prompt": [[]] * MANY}, "prompt"),
        (ConversationFields, {"messages": [{}] * MANY}, "messages"),
        (TokenizeFields, {"messages": [{}] * MANY}, "messages"),
        (DetokenizeFields, {"tokens": [-1] * MANY}, "tokens"),
        (ResponsesBody, {"input": [1] * MANY}, "input"),
        (ResponsesBody, {"input": "x", "include": [1] * MANY}, "include"),
        (MessagesBody, {"max_tokens": 1, "messages": [MESSAGE], "system": [1] * MANY}, "system"),
    ],
)
def test_the_worst_is_refused_at_once(kind: type, value: dict[str, Any], param: str) -> None:
    begin = time.thread_time()
    with pytest.raises(InvalidRequestError) as caught:
        validate(kind, value)
    # Each error would take some microseconds.
    assert time.thread_time() - begin < 0.5
    assert caught.value.param == param


def test_what_is_right_is_returned() -> None:
    assert validate(Thing, {"text": "a", "size": 2}) == {"text": "a", "size": 2}
