"""SentencePiece's model files: what they say, and what is wrong with them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.sentencepiece_files import (
    BYTE,
    CONTROL,
    NORMAL,
    PIECES,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    field,
    sentencepiece_model,
    varint,
)
from support.text_files import write_json
from windlass.errors import LoadError
from windlass.text.charsmap import Charsmap
from windlass.text.sentencepiece_model import parse_sentencepiece
from windlass.text.tokenizer import BOUNDARY, Tokenizer

BYTES = tuple((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256))
AT = Path("tokenizer.model")


def load(at: Path, data: bytes | None = None, name: str = "tokenizer.model", **files: Any) -> Tokenizer:
    (at / name).write_bytes(sentencepiece_model() if data is None else data)
    return Tokenizer.from_directory(write_json(at, **files))


def unit(label: int, offset: int, *, leaf: bool = False) -> int:
    return offset << 10 | leaf << 8 | label


def charsmap() -> bytes:
    """Two rules: "a" becomes "b", "ac" becomes nothing."""
    units = [0] * 512
    units[0] = unit(0, 256)
    units[256 ^ ord("a")] = unit(ord("a"), (256 ^ ord("a")) ^ 128, leaf=True)
    units[128] = 1 << 31 | 0
    units[128 ^ ord("c")] = unit(ord("c"), (128 ^ ord("c")) ^ 130, leaf=True)
    units[130] = 1 << 31 | 1
    return struct.pack("<I512I", 2048, *units) + b"b\0\0"


@pytest.mark.parametrize("kind", [UNIGRAM, 2])
def test_a_model(tmp_path: Path, kind: int) -> None:
    tokenizer = load(tmp_path, sentencepiece_model(kind=kind))
    assert Tokenizer.is_in(tmp_path)
    assert tokenizer.encode("he he", bos=True) == [1, 7, 7]
    assert tokenizer.decode([1, 7, 7, 2]) == "he he"
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, len(PIECES))
    assert tokenizer.encode("<|user|>he") == [3, 8, 6]
    # No text becomes a special token.
    assert tokenizer.encode("<s>") == [3, 9, 10, 11]
    assert tokenizer.encode_template("<s>he</s>") == [1, 7, 2]
    assert tokenizer.encode("xyz") == [3, 0]
    assert tokenizer.encode("") == []


def test_numbered_files_and_what_comes_first(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model.v1").write_bytes(b"nothing")
    tokenizer = load(tmp_path, name="tokenizer.model.v3")
    assert tokenizer.path.name == "tokenizer.model.v3"
    assert tokenizer.encode("he") == [7]


@pytest.mark.parametrize(
    ("config", "first", "later"),
    [
        ({}, [7], [7]),
        ({"legacy": True}, [7], [7]),
        ({"legacy": False}, [7], [6]),
        ({"add_prefix_space": False}, [6], [6]),
    ],
)
def test_the_space_before_a_text(tmp_path: Path, config: dict[str, Any], first: list[int], later: list[int]) -> None:
    tokenizer = load(tmp_path, tokenizer_config=config)
    assert tokenizer.encode("he") == first
    assert tokenizer.encode_template("<s>he") == [1, *later]
    assert tokenizer.encode(f"he{BOUNDARY}he") == [*first, *later]


def test_bos_is_left_out_if_the_config_says_so(tmp_path: Path) -> None:
    assert load(tmp_path, tokenizer_config={"add_bos_token": False}).encode("he", bos=True) == [7]


def test_declared_tokens(tmp_path: Path) -> None:
    declared = {
        "2": {"content": "</s>", "special": True},
        "12": {"content": "<|end|>", "special": True, "rstrip": True},
        "14": {"content": "<tool>", "special": False, "lstrip": True},
        "6": {"content": "<new>", "special": True},
    }
    config = {"legacy": False, "eos_token": "<|end|>", "added_tokens_decoder": declared}
    tokenizer = load(tmp_path, tokenizer_config=config, added_tokens={"<late>": 15})
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (16, 12)
    assert tokenizer.encode("<|end|>")[0] != 12
    assert tokenizer.encode_template("<|end|>  he<late>") == [12, 4, 5, 15]
    assert tokenizer.encode("he <tool>he") == [3, 4, 5, 14, 4, 5]
    assert tokenizer.encode_template("<new>") == [6]
    assert tokenizer.decode([14, 12]) == "<tool>"
    assert tokenizer.token_bytes(13) == b""
    assert tokenizer.added_token_id("<tool>") == 14


def test_a_declared_token_that_has_another_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LoadError, match=r"tokenizer_config\.json: token 'he' has id 20, but tokenizer\.model gives it 6"
    ):
        load(tmp_path, tokenizer_config={"added_tokens_decoder": {"20": {"content": "he"}}})


def test_a_piece_that_the_config_calls_special_is_special(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, tokenizer_config={"additional_special_tokens": ["<|user|>"]})
    assert 8 not in tokenizer.encode("<|user|>")
    assert tokenizer.encode_template("<|user|>") == [8]


def test_unused_pieces_are_taken_apart(tmp_path: Path) -> None:
    pieces = [(piece, score, UNUSED if piece == "he" else kind) for piece, score, kind in PIECES]
    assert load(tmp_path, sentencepiece_model(pieces)).encode("hehe") == [7, 4, 5]


def test_unknown_characters_become_bytes(tmp_path: Path) -> None:
    data = sentencepiece_model([*PIECES, *BYTES], trainer={35: 1})
    tokenizer = load(tmp_path, data)
    first = len(PIECES)
    assert tokenizer.encode("heß<0x41>")[:3] == [7, first + 0xC3, first + 0x9F]
    assert first + 0x41 not in tokenizer.encode("<0x41>")[:-3]
    assert tokenizer.decode(tokenizer.encode("heß東 <0x41>")) == "heß東 <0x41>"


def test_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="lone surrogate"):
        load(tmp_path).encoder.encode("a\ud800")


def test_rules() -> None:
    rules = Charsmap(charsmap())
    assert rules.apply("") == ""
    assert rules.apply("xay ac aac éa") == "xby  b éb"


@pytest.mark.parametrize("change", [b"", b"\1\0\0\0", charsmap()[:-1] + b"x", charsmap()[:2000], charsmap()[:-2]])
def test_rules_that_are_damaged_are_refused(tmp_path: Path, change: bytes) -> None:
    with pytest.raises(LoadError, match=r"tokenizer\.model: is not a SentencePiece model .*precompiled_charsmap"):
        load(tmp_path, sentencepiece_model(normalizer={2: change or b"\0"}))


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=2048, max_size=2048), st.text(max_size=20))
def test_any_rules_do_no_harm(trie: bytes, text: str) -> None:
    try:
        rules = Charsmap(b"\0\x08\0\0" + trie + b"x\0")
        rules.apply(text)
    except ValueError:  # UnicodeEncodeError is one
        pass


def without(*names: str) -> list[tuple[str, float, int]]:
    return [piece for piece in PIECES if piece[0] not in names]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\n\x05", "longer than what is left"),
        (b"\n\xff\xff\xff\xff\x0f", "longer than what is left"),
        (b"\n", "a number is cut off"),
        (b"\xff" * 11, "a number is cut off"),
        (b"\0\0", "the number 0"),
        (b"\x0b", "wire type 3"),
        (b"", "0 pieces of type unknown"),
        (varint(1 << 3) + b"\1", "should be a message"),
        (field(1, field(1, b"a") + field(2, 1)), "a score is not a number"),
        (field(1, field(1, b"a") + field(2, float("nan"))), "not finite"),
        (field(1, field(1, b"a") + field(3, 9)), "of type 9"),
        (field(1, field(1, b"\xff")), "invalid start byte"),
        (field(1, b""), "a piece has 0 bytes"),
        (field(1, field(1, b"a" * 513)), "a piece has 513 bytes"),
        (sentencepiece_model(without("<unk>")), "0 pieces of type unknown"),
        (sentencepiece_model([*PIECES, ("?", 0.0, UNKNOWN)]), "2 pieces of type unknown"),
        (sentencepiece_model([*PIECES, ("he", 0.0, NORMAL)]), "there twice"),
        (sentencepiece_model([*PIECES, ("<s>", 0.0, CONTROL)]), "there twice"),
        (sentencepiece_model(kind=3), "model_type is 3"),
        (sentencepiece_model([*PIECES, *((f"<{n}>", 0.0, 4) for n in range(1 << 15))]), "more than 32768 user-defined"),
        (sentencepiece_model(trainer={35: 1}), "byte_fallback needs the 256 pieces"),
        (sentencepiece_model([*PIECES, BYTES[0]]), "without byte_fallback"),
        (sentencepiece_model(normalizer={3: b"yes"}), "add_dummy_prefix is of the wrong type"),
        (sentencepiece_model() + field(5, field(2, b"rules")), "denormalizer_spec"),
    ],
)
def test_files_that_are_wrong_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(LoadError, match=reason) as caught:
        parse_sentencepiece(data, AT)
    assert str(caught.value).startswith("tokenizer.model: is not a SentencePiece model")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_read(data: st.DataObject) -> None:
    whole = bytearray(sentencepiece_model([*PIECES, *BYTES], trainer={35: 1}, normalizer={2: charsmap()}))
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        parse_sentencepiece(bytes(whole[:cut]), AT)
    except LoadError:
        return


def test_negative_ids_stand_for_none(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, sentencepiece_model(trainer={41: -1, 42: 99}))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, None)
    assert tokenizer.encode("he", bos=True) == [7]
