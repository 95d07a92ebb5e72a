from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from windlass.errors import InvalidRequestError
from windlass.text.stop import StopStrings


def run(stops: list[str], chunks: list[str]) -> tuple[str, bool]:
    """What comes out of a stream cut into ``chunks``, and whether it was stopped."""
    watch = StopStrings(stops)
    out = ""
    for chunk in chunks:
        text, stopped = watch.push(chunk)
        out += text
        if stopped:
            return out, True
    return out + watch.flush(), False


def oracle(stops: list[str], text: str) -> tuple[str, bool]:
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


letters = st.text("ab", max_size=12)


@settings(max_examples=300)
@example(stops=["abab"], chunks=["aba", "bab"])
@example(stops=["abb", "b"], chunks=["ab", "b"])
@given(stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3), chunks=st.lists(letters, max_size=6))
def test_any_cutting_gives_what_the_naive_search_gives(stops: list[str], chunks: list[str]) -> None:
    assert run(stops, chunks) == oracle(stops, "".join(chunks))


@settings(max_examples=300)
@given(stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3), text=letters)
def test_nothing_that_cannot_be_in_a_stop_string_is_held_back(stops: list[str], text: str) -> None:
    watch = StopStrings(stops)
    out, stopped = watch.push(text)
    if not stopped:
        held = text[len(out) :]
        assert text == out + held
        assert not held or any(stop.startswith(held) for stop in stops)


def test_the_earliest_complete_stop_string_wins() -> None:
    assert run(["abcd", "bc"], ["xabcd"]) == ("xa", True)
    assert run(["bcd", "abcd"], ["xabcd"]) == ("x", True)


def test_the_stop_string_that_ended_the_text_is_known() -> None:
    for stops, text, found in (
        (["END", "STOP"], "a STOP", "STOP"),
        (["bcd", "abcd"], "xabcd", "abcd"),
        (["END"], "a", None),
    ):
        watch = StopStrings(stops)
        for character in text:
            watch.push(character)
        assert watch.found == found


def test_after_a_stop_there_is_no_more_text() -> None:
    watch = StopStrings(["END"])
    assert watch.push("some textEN") == ("some text", False)
    assert watch.push("D and more") == ("", True)
    assert watch.push("still more") == ("", True)
    assert watch.flush() == ""


def test_without_stop_strings_text_passes() -> None:
    watch = StopStrings([])
    assert watch.push("abc") == ("abc", False)
    assert watch.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="must not be empty") as caught:
        StopStrings(["a", ""])
    assert caught.value.param == "stop"
