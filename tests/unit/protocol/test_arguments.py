"""Arguments of create(): what is accepted, and that a refusal names the argument."""

from __future__ import annotations

from typing import Any

import pytest

from windlass.errors import InvalidRequestError
from windlass.protocol.arguments import ChatArguments, CompletionArguments, check_arguments

MESSAGES = [{"role": "user", "content": "Hi"}]


def test_none_means_left_out() -> None:
    checked = check_arguments(ChatArguments, {"messages": MESSAGES, "temperature": 0, "stop": None, "n": None})
    assert checked == {"messages": MESSAGES, "temperature": 0.0}


@pytest.mark.parametrize(
    ("arguments", "param", "code"),
    [
        ({}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "Hi"}, "messages", "invalid_value"),
        ({"messages": MESSAGES, "temprature": 1}, "temprature", "unknown_parameter"),
        ({"messages": MESSAGES, "temperature": 2.5}, "temperature", "invalid_value"),
        ({"messages": MESSAGES, "temperature": float("nan")}, "temperature", "invalid_value"),
        ({"messages": MESSAGES, "top_p": 0.0}, "top_p", "invalid_value"),
        ({"messages": MESSAGES, "max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"messages": MESSAGES, "max_tokens": "5"}, "max_tokens", "invalid_value"),
        ({"messages": MESSAGES, "n": 17}, "n", "invalid_value"),
        ({"messages": MESSAGES, "n": True}, "n", "invalid_value"),
        ({"messages": MESSAGES, "seed": 2**63}, "seed", "invalid_value"),
        ({"messages": MESSAGES, "stop": ""}, "stop", "invalid_value"),
        ({"messages": MESSAGES, "stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"messages": MESSAGES, "stop": ["x" * 257]}, "stop", "invalid_value"),
        ({"messages": MESSAGES, "stream_options": {"usage": True}}, "stream_options", "invalid_value"),
        ({"messages": MESSAGES, "request_id": ""}, "request_id", "invalid_value"),
    ],
)
def test_refusals_name_the_argument(arguments: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_arguments(ChatArguments, arguments)  # type: ignore[arg-type]
    assert (caught.value.param, caught.value.code) == (param, code)
    assert param in str(caught.value)


def test_a_prompt_is_text_or_token_ids_or_a_list_of_these() -> None:
    for prompt in ("Hi", [1, 2], ["Hi"], [[1, 2], "Hi"]):
        assert check_arguments(CompletionArguments, {"prompt": prompt}) == {"prompt": prompt}  # type: ignore[typeddict-item]
    for prompt in ([], [-1], [[]], ["a", 1], [1, "a"], [None], 5):
        with pytest.raises(InvalidRequestError) as caught:
            check_arguments(CompletionArguments, {"prompt": prompt})  # type: ignore[typeddict-item]
        assert caught.value.param == "prompt"
