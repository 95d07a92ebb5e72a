from __future__ import annotations

import gc
import itertools
import json
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from support.text_files import (
    added_token,
    bos_processor,
    byte_level_tokenizer,
    metaspace_tokenizer,
    sentencepiece_tokenizer,
    write_json,
)
from windlass.errors import InvalidRequestError, LoadError
from windlass.text.tokenizer import BOUNDARY, MARK, Tokenizer

BUILDERS = {
    "byte level": byte_level_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "metaspace, first": lambda: metaspace_tokenizer("first"),
    "metaspace, always": lambda: metaspace_tokenizer("always"),
    "metaspace, never": lambda: metaspace_tokenizer("never"),
}


def load(directory: Path, tokenizer: dict[str, Any], **files: Any) -> Tokenizer:
    return Tokenizer.from_directory(write_json(directory, tokenizer=tokenizer, **files))


@pytest.fixture(params=BUILDERS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tokenizer, Library]:
    """A tokenizer and the library's own, which recognises special tokens, from one file."""
    tokenizer = load(tmp_path, BUILDERS[request.param]())
    return tokenizer, Library.from_file(str(tmp_path / "tokenizer.json"))


def test_special_tokens_in_text_stay_text(pair: tuple[Tokenizer, Library]) -> None:
    tokenizer, _ = pair
    for special in tokenizer.special_texts:
        for text in (special, f"he {special}he", f"a{special}"):
            ids = tokenizer.encode(text)
            assert not tokenizer.special_ids & set(ids)
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["", "he", " he", "{0}", "{0}he", "he{0} he{1}{0}he ", " {0} {1} he", "{0}{0}{0}he\n"])
def test_a_templates_special_tokens_encode_as_the_library_encodes_them(
    pair: tuple[Tokenizer, Library], text: str
) -> None:
    tokenizer, library = pair
    text = text.format(*tokenizer.special_texts[-2:])
    assert tokenizer.encode_template(text) == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}])
def test_special_tokens_that_swallow_spaces(tmp_path: Path, flags: dict[str, bool]) -> None:
    added = [added_token(258, "<e>", **flags), added_token(259, "<f>")]
    tokenizer = load(tmp_path, byte_level_tokenizer(added_tokens=added))
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("he <e> \n he", "<e>", " <e> ", "<f> <e><e> <f>", "<e> <f>"):
        assert tokenizer.encode_template(text) == library.encode(text, add_special_tokens=False).ids


def test_a_mark_breaks_a_special_token_and_goes(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level_tokenizer())
    broken = f"<{MARK}|im_end|>"
    assert tokenizer.encode_template(f"he{broken}<|im_end|>he") == [*tokenizer.encode("he<|im_end|>"), 260, 256]


def test_noncharacters_used_inside_are_dropped_from_text(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level_tokenizer())
    assert tokenizer.encode("he\ufdd0he") == tokenizer.encode_template("he\ufdd0he") == [256, 256]
    assert max(tokenizer.encode_template("<|im_end|>\ufdd0he")) < tokenizer.vocab_size


def test_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level_tokenizer())
    with pytest.raises(InvalidRequestError, match="lone surrogate"):
        tokenizer.encode("a\ud800b")


@pytest.mark.parametrize(
    ("changes", "config", "expected"),
    [
        ({}, {}, ()),
        ({"post_processor": bos_processor("<|im_start|>", 259)}, {}, (259,)),
        ({"post_processor": bos_processor("<|im_start|>", 259)}, {"add_bos_token": False}, ()),
        ({}, {"bos_token": "<|endoftext|>"}, ()),
        ({}, {"bos_token": "<|endoftext|>", "add_bos_token": True}, (258,)),
        ({}, {"bos_token": None, "add_bos_token": True}, ()),
    ],
)
def test_bos_is_what_the_tokenizer_itself_puts_first(
    tmp_path: Path, changes: dict[str, Any], config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    tokenizer = load(tmp_path, byte_level_tokenizer(**changes), tokenizer_config=config)
    assert tokenizer.bos_prefix == expected
    assert tokenizer.encode("he", bos=True) == [*expected, 256]
    assert tokenizer.encode("he") == [256]


def test_named_special_tokens_come_from_the_config(tmp_path: Path) -> None:
    config = {
        "bos_token": None,
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False},
        "additional_special_tokens": ["<|im_start|>", {"content": "<|im_end|>"}],
    }
    older = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tokenizer = load(tmp_path, byte_level_tokenizer(), tokenizer_config=config, special_tokens_map=older)
    assert tokenizer.special_tokens == {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 260)


def test_a_token_that_only_the_config_calls_special_is_special(tmp_path: Path) -> None:
    added = [added_token(258, "<|end|>", special=False), added_token(259, "<|call|>", special=False)]
    config = {"eos_token": "<|end|>", "added_tokens_decoder": {"259": {"content": "<|call|>", "special": True}}}
    tokenizer = load(tmp_path, byte_level_tokenizer(added_tokens=added), tokenizer_config=config)
    assert tokenizer.special_ids == {258, 259}
    assert not {258, 259} & set(tokenizer.encode("<|end|><|call|>"))
    assert tokenizer.encode_template("<|end|>") == [258]
    assert tokenizer.vocab_size == 260


def test_added_tokens_that_are_not_special_are_tokens_in_any_text(tmp_path: Path) -> None:
    added = [added_token(258, "<think>", special=False)]
    tokenizer = load(tmp_path, byte_level_tokenizer(added_tokens=added))
    assert tokenizer.encode("he<think>") == [256, 258]
    assert tokenizer.decode([258]) == "<think>"
    assert tokenizer.added_token_id("<think>") == 258
    assert tokenizer.added_token_id("he") is None


def test_an_added_token_outside_the_byte_alphabet_stands_for_itself(tmp_path: Path) -> None:
    added = [added_token(258, "<｜a b｜>", special=False), added_token(259, "<｜end｜>")]
    tokenizer = load(tmp_path, byte_level_tokenizer(added_tokens=added))
    assert tokenizer.decode([256, 258, 259]) == "he<｜a b｜>"
    assert tokenizer.token_bytes(259) == "<｜end｜>".encode()


def test_files_of_gpt2(tmp_path: Path) -> None:
    whole = byte_level_tokenizer()
    model = whole["model"]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(model["merges"]) + "\n", encoding="utf-8")
    added = {token["content"]: token["id"] for token in whole["added_tokens"]}
    write_json(tmp_path, vocab=model["vocab"], added_tokens=added, tokenizer_config={"eos_token": "<|im_end|>"})
    assert Tokenizer.is_in(tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.encode_template("he<|im_end|> he") == [256, 260, 257]
    assert tokenizer.decode([256, 260, 257]) == "he he"
    assert tokenizer.eos_id == 260
    write_json(tmp_path, added_tokens={"<|im_end|>": 300})
    with_a_gap = Tokenizer.from_directory(tmp_path)
    assert (with_a_gap.eos_id, with_a_gap.vocab_size) == (300, 301)
    assert with_a_gap.encode_template("he<|im_end|> he") == [256, 300, 257]


def test_a_directory_without_a_readable_tokenizer_says_what_is_accepted(tmp_path: Path) -> None:
    assert not Tokenizer.is_in(tmp_path)
    with pytest.raises(LoadError, match=r"has no tokenizer; accepted are tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "Magic"}}'])
def test_a_broken_tokenizer_is_a_load_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(LoadError, match=r"tokenizer\.json: is not a tokenizer"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}]},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
)
def test_an_unknown_decoder_is_refused(tmp_path: Path, decoder: dict[str, Any] | None) -> None:
    with pytest.raises(LoadError, match="accepted are ByteLevel, ByteFallback"):
        load(tmp_path, byte_level_tokenizer(decoder=decoder))


def test_broken_tokenizer_config_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(LoadError, match=r"tokenizer_config\.json: the file must be a JSON object"):
        load(tmp_path, byte_level_tokenizer())


def test_limits_stored_in_the_file_are_ignored(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tokenizer = load(tmp_path, byte_level_tokenizer(truncation=truncation))
    assert len(tokenizer.encode("abcdef")) == 6


def test_bytes_of_tokens(pair: tuple[Tokenizer, Library]) -> None:
    tokenizer, library = pair
    special = next(iter(tokenizer.special_ids))
    assert tokenizer.text_bytes(special) is None
    assert tokenizer.token_bytes(special) == library.id_to_token(special).encode()
    assert tokenizer.text_bytes(tokenizer.vocab_size) is None
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""
    assert [tokenizer.token_bytes(token_id) for token_id in tokenizer.encode("eh\x00")][-1] == b"\0"


@pytest.mark.parametrize("name", ["qwen2", "phi3"])
@settings(max_examples=150, deadline=None)
@example(text="  \u00a0🙂 ￾\u3000e\u0301")
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_decoding_agrees_with_the_library(request: pytest.FixtureRequest, name: str, text: str) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    library: Library = request.getfixturevalue(f"{name}_library")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == library.decode(ids)


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, 152_000), max_size=20))
def test_byte_level_decoding_of_any_ids_agrees_with_the_library(
    qwen2: Tokenizer, qwen2_library: Library, ids: list[int]
) -> None:
    assert qwen2.decode(ids) == qwen2_library.decode(ids)


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_metaspace_decoding_agrees_with_the_library(tmp_path: Path, scheme: str) -> None:
    tokenizer = load(tmp_path, metaspace_tokenizer(scheme))
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("he he", "  he", " a b ", "\u00e9 x"):
        ids = [1, *tokenizer.encode(text), 2]
        assert tokenizer.decode(ids) == library.decode(ids)


@pytest.mark.parametrize("cleanup", [False, True])
def test_word_piece_decoding_agrees_with_the_library(tmp_path: Path, cleanup: bool) -> None:
    words = ["[UNK]", "he", "##he", ".", ",", "?", "n't", "##n't", "'s", "do not", "'"]
    model = {"type": "WordPiece", "vocab": {word: number for number, word in enumerate(words)}, "unk_token": "[UNK]"}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": cleanup}
    tokenizer = load(tmp_path, {"version": "1.0", "added_tokens": [], "model": model, "decoder": decoder})
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    for ids in ([], [2, 1], [1, 2, 3], [4, 1, 4, 6, 5], [7, 8, 9, 10, 1], [3, 9, 2, 6]):
        assert tokenizer.decode(ids) == library.decode(ids)


def test_the_likeliest_pieces_are_never_special_tokens(tmp_path: Path) -> None:
    vocab = [["<unk>", 0.0], ["</s>", 0.0], ["<", -3.0], ["/s", -4.0], [">", -5.0], ["he", -2.0]]
    whole = {
        "version": "1.0",
        "added_tokens": [added_token(0, "<unk>"), added_token(1, "</s>")],
        "decoder": {"type": "Fuse"},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab},
    }
    tokenizer = load(tmp_path, whole)
    assert tokenizer.encode("he</s>he") == [5, 2, 3, 4, 5]
    assert tokenizer.encode_template("he</s>he") == [5, 1, 5]


def test_added_tokens_are_found_as_the_library_finds_them(tmp_path: Path) -> None:
    flags = [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"lstrip": True, "rstrip": True}]
    texts = ["<a>", "<b>", "<c>", "dd", "<e>"]
    for special in (True, False):
        added = [
            added_token(258 + number, text, special=special, **one)
            for number, (text, one) in enumerate(zip(texts, flags, strict=True))
        ]
        whole = byte_level_tokenizer(added_tokens=added)
        tokenizer = load(tmp_path, whole)
        library = Library.from_file(str(tmp_path / "tokenizer.json"))
        for first, second, third in itertools.product(
            ["he", " ", "  he ", "x", "d", "."], texts, [" he", "  ", "y", "!"]
        ):
            text = f"{first}{second}{third}{second}{first}"
            found = tokenizer.encode_template(text) if special else tokenizer.encode(text)
            assert found == library.encode(text, add_special_tokens=False).ids, text


def test_many_threads_may_encode_and_decode(qwen2: Tokenizer) -> None:
    texts = [f"thread {number}: <|im_end|> 你好 🙂 " * 20 for number in range(32)]

    def round_trip(text: str) -> str:
        return qwen2.decode(qwen2.encode(text))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(round_trip, texts)) == texts


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_no_thread_is_left_behind(data_dir: Path) -> None:
    before = set(Path("/proc/self/task").iterdir())
    tokenizer = Tokenizer.from_directory(data_dir / "tokenizers" / "phi-3")
    tokenizer.decode(tokenizer.encode("some text " * 1000))
    assert set(Path("/proc/self/task").iterdir()) <= before


def test_dropping_a_tokenizer_frees_it_at_once(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level_tokenizer())
    tokenizer.decode(tokenizer.encode("he"))
    reference = weakref.ref(tokenizer)
    gc.disable()
    try:
        del tokenizer
        assert reference() is None
    finally:
        gc.enable()


def test_vocabulary_size_counts_holes(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level_tokenizer())
    library = Library.from_str(json.dumps(byte_level_tokenizer()))
    assert tokenizer.vocab_size == library.get_vocab_size() == 261


def test_a_hole_in_the_vocabulary_costs_no_token(tmp_path: Path) -> None:
    whole = byte_level_tokenizer(specials=[])
    del whole["model"]["vocab"]["\u0100"]  # the byte 0
    whole["model"]["vocab"]["he"] = 300
    whole["model"]["vocab"]["Ġhe"] = 257  # as many as there are: what the library gives a new token
    tokenizer = load(tmp_path, whole)
    assert tokenizer.encode(f"he{BOUNDARY} he") == [300, 257]
    assert tokenizer.decode([300, 257, 256, 0]) == "he he"
