"""What is found plain at a glance is what the full check accepts, with the same result."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.errors import InvalidRequestError
from windlass.protocol import checks, plain
from windlass.protocol.arguments import ChatArguments, CompletionArguments, DebugConfig, check_arguments

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1]),
    st.floats(),
    st.sampled_from([0.0, 2.0, -0.0, 2.5, 1]),
    st.text(max_size=3),
    st.lists(st.one_of(st.integers(-1, 9), st.text(max_size=2), st.booleans()), max_size=3),
    st.lists(
        st.dictionaries(
            st.one_of(st.sampled_from(["role", "content"]), st.integers(0, 1)),
            st.one_of(st.sampled_from(["user", "system", "nobody"]), st.integers(0, 1)),
            max_size=3,
        ),
        max_size=2,
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "debug_config": st.dictionaries(
                st.sampled_from(["ignore_eos", "pinned_system_prompt", "typo"]),
                st.one_of(st.booleans(), st.integers(0, 1), st.none()),
            ),
            "seed": st.just(1),
        },
    ),
)
NAMES = (
    "prompt",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "seed",
    "top_p",
    "extra_body",
    "debug_config",
    "unknown",
)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_both_checks_agree(arguments: dict[str, Any]) -> None:
    for kind, tests, required in (
        (ChatArguments, plain.PLAIN_CHAT, "messages"),
        (CompletionArguments, plain.PLAIN_COMPLETION, "prompt"),
    ):
        if plain.are_plain(arguments, tests, required):
            full, quick = check_arguments(kind, arguments), checks._own(arguments)
            assert full == quick
            assert {name: type(value) for name, value in full.items()} == {
                name: type(value) for name, value in quick.items()
            }


PLAIN_COMPLETION = {
    "prompt": [1, 2, 3],
    "max_tokens": 1,
    "temperature": 0.0,
    "seed": -5,
    "extra_body": {"debug_config": {"ignore_eos": True}},
}
PLAIN_CHAT = {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 3}


def test_plain_arguments_are_found_plain() -> None:
    assert plain.are_plain(PLAIN_COMPLETION, plain.PLAIN_COMPLETION, "prompt")
    assert plain.are_plain(PLAIN_CHAT, plain.PLAIN_CHAT, "messages")
    assert set(plain.SWITCHES) == set(DebugConfig.__annotations__)


def test_the_caller_may_go_on_to_change_a_list() -> None:
    prompt = [1, 2, 3]
    checked = checks.check_completion_arguments({"prompt": prompt})
    prompt.append(4)
    assert checked["prompt"] == [1, 2, 3]


def test_whatever_else_there_is_gets_the_full_check() -> None:
    assert checks.check_completion_arguments({"prompt": "x", "max_tokens": None}) == {"prompt": "x"}  # type: ignore[typeddict-item]
    assert checks.check_chat_arguments({**PLAIN_CHAT, "extra_body": {"top_k": 3}})["top_k"] == 3  # type: ignore[typeddict-item]
    for check, arguments in (
        (checks.check_completion_arguments, {}),
        (checks.check_completion_arguments, {"prompt": []}),
        (checks.check_completion_arguments, {"prompt": [-1]}),
        (checks.check_completion_arguments, {**PLAIN_COMPLETION, "temperature": float("nan")}),
        (checks.check_completion_arguments, {**PLAIN_COMPLETION, "debug_config": {"ignore_eos": True}}),  # twice
        (checks.check_chat_arguments, {"messages": []}),
        (checks.check_chat_arguments, {**PLAIN_CHAT, "typo": 1}),
    ):
        with pytest.raises(InvalidRequestError):
            check(arguments)  # type: ignore[arg-type]


def test_plain_arguments_do_without_pydantic() -> None:
    script = (
        "import sys; from windlass.protocol.checks import check_completion_arguments as check;"
        "check({'prompt': [1], 'max_tokens': 1}); sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
