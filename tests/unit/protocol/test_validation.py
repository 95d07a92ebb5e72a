"""Dictionaries from outside: a refusal says what is wrong, of all the ways in which it is."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import ConfigDict, Field, with_config
from typing_extensions import Required, TypedDict

from windlass.errors import InvalidRequestError
from windlass.protocol.validation import validate


@with_config(ConfigDict(extra="forbid"))
class Thing(TypedDict, total=False):
    """What the tests check."""

    text: Required[str | Annotated[list[dict[str, Any]], Field(min_length=1)]]
    size: Annotated[int, Field(ge=1)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "'text' is required"),
        ({"text": "a", "no": 1}, "unknown argument 'no'; accepted are size, text"),
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


def test_what_is_right_is_returned() -> None:
    assert validate(Thing, {"text": "a", "size": 2}) == {"text": "a", "size": 2}
