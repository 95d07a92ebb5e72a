from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.text_files import byte_level_tokenizer, metaspace_tokenizer, sentencepiece_tokenizer, write_json
from windlass.text.detokenizer import IncrementalDetokenizer
from windlass.text.tokenizer import Tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int], tail: list[int] | None = None) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, tail or [])
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_directory(write_json(tmp_path_factory.mktemp("byte_level"), tokenizer=byte_level_tokenizer()))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_directory(
        write_json(tmp_path_factory.mktemp("sentencepiece"), tokenizer=sentencepiece_tokenizer())
    )


@pytest.mark.parametrize("name", ["qwen2", "phi3"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_pieces_of_any_ids_join_to_the_whole(request: pytest.FixtureRequest, name: str, data: st.DataObject) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    # Mostly single bytes: there the characters that are cut and broken are.
    single_bytes = st.sampled_from(tokenizer.encode("".join(map(chr, range(0x80, 0x180))) + "🙂🏽‍🚀"))
    ids = data.draw(st.lists(single_bytes | st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "qwen2", "phi3"])
def test_no_piece_holds_a_broken_character(request: pytest.FixtureRequest, name: str) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    text = "é 你好 🙂🏽‍🚀 \u0f00\u0f01 ￿ end"
    for cut in range(len(text)):
        ids = tokenizer.encode(text[cut:])
        got = pieces(tokenizer, ids)
        assert "".join(got) == text[cut:]
        assert not any("\ufffd" in piece for piece in got)
        assert got[-1] == ""


# Lead bytes, continuations, overlong forms, surrogates and beyond, beside bytes of whole characters.
BYTES = st.one_of(
    st.sampled_from(
        [b"\x80", b"\xbf", b"\xc0", b"\xc2", b"\xe0", b"\xed\xa0", b"\xe4\xbd", b"\xf0\x9f", b"\xf4\x90", b"\xff"]
    ),
    st.sampled_from(["a", " ", "é", "你", "🙂", "\u0301", "\ufffd"]).map(str.encode),
    st.binary(max_size=3),
)


@pytest.mark.parametrize("first", [0, 3])
@settings(max_examples=300, deadline=None)
@given(stream=st.lists(BYTES, max_size=20).map(b"".join))
def test_any_bytes_become_what_unicode_says(
    byte_level: Tokenizer, sentencepiece: Tokenizer, first: int, stream: bytes
) -> None:
    """One U+FFFD for each maximal subpart, as Python and Rust decode; little is held back."""
    detokenizer = IncrementalDetokenizer(sentencepiece if first else byte_level)
    if first:
        assert detokenizer.push(first + ord(" ")) == ""  # the one that SentencePiece puts before a text
    text = ""
    for at, byte in enumerate(stream):
        text += detokenizer.push(first + byte)
        whole = stream[: at + 1].decode("utf-8", "replace")
        known = whole.removeprefix(text)
        assert whole.startswith(text)
        assert known in (
            "",
            "\ufffd",
            "\ufffd" * 2,
        )  # it may become whole, or so Python thinks
    assert text + detokenizer.flush() == stream.decode("utf-8", "replace")


def test_special_tokens_that_are_shown_end_a_character(byte_level: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(byte_level, shown={259: "|"})
    assert [detokenizer.push(token_id) for token_id in (256, 0xE4, 259, 260, 65)] == ["he", "", "\ufffd|", "", "A"]


def test_incomplete_characters_are_held_back(byte_level: Tokenizer) -> None:
    assert pieces(byte_level, [*"🙂".encode(), 256]) == ["", "", "", "🙂", "he", ""]


def test_bytes_that_cannot_become_valid_are_replaced_at_once(byte_level: Tokenizer) -> None:
    assert pieces(byte_level, [0xFF, 0xE4, 0xBD, 256]) == ["\ufffd", "", "", "\ufffdhe", ""]


def test_an_unfinished_character_is_replaced_at_the_end(byte_level: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(byte_level)
    assert detokenizer.push(0xE4) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_special_tokens_give_no_text_and_break_no_character(byte_level: Tokenizer) -> None:
    first, *rest = "é".encode()
    assert pieces(byte_level, [258, first, 260, *rest, 259]) == ["", "", "", "é", "", ""]


def test_a_leading_space_goes_as_in_the_whole(sentencepiece: Tokenizer) -> None:
    ids = sentencepiece.encode("he he")
    assert pieces(sentencepiece, ids) == ["he", " he", ""]
    assert "".join(pieces(sentencepiece, [1, *sentencepiece.encode("  he")])) == "  he"


def test_several_leading_spaces_may_go(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer()
    tokenizer["decoder"]["decoders"][-1]["start"] = 2
    loaded = Tokenizer.from_directory(write_json(tmp_path, tokenizer=tokenizer))
    space, he = loaded.encode(" ")[0], loaded.encode("he")[0]
    for ids, text in (([space, space, he], " he"), ([space, he, he], "he he"), ([he, space, he], "he  he")):
        assert loaded.decode(ids) == "".join(pieces(loaded, ids)) == text


def test_a_continued_text_keeps_its_leading_space(sentencepiece: Tokenizer) -> None:
    prompt, answer = sentencepiece.encode("he"), sentencepiece.encode("he")
    assert pieces(sentencepiece, answer, tail=prompt) == [" he", ""]
    assert pieces(sentencepiece, answer, tail=[1]) == ["he", ""]


def test_a_character_begun_in_the_prompt_is_completed(byte_level: Tokenizer) -> None:
    *begun, last = "🙂".encode()
    assert pieces(byte_level, [last], tail=[256, *begun]) == ["🙂", ""]


def test_metaspace_drops_the_first_space_only(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write_json(tmp_path, tokenizer=metaspace_tokenizer("always")))
    ids = tokenizer.encode("he he")
    assert pieces(tokenizer, [1, *ids]) == ["", "he", " he", ""]
    assert pieces(tokenizer, ids, tail=ids) == [" he", " he", ""]
