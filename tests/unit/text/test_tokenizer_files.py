"""Vocabularies in files of other kinds than tokenizer.json: what they may say besides what the goldens have."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from support.text_files import write_json
from windlass.errors import LoadError
from windlass.text import byte_ranks
from windlass.text.byte_decoding import byte_level_alphabet
from windlass.text.library_tokenizer import LibraryEncoder
from windlass.text.packed_bpe import PackedBpe
from windlass.text.packing import pack_bpe
from windlass.text.tokenizer import Tokenizer

TOKENS = [*(bytes([byte]) for byte in range(256)), b"he", b" he", b"zz!", b"<s>"]


def rank_lines(tokens: list[bytes] = TOKENS) -> str:
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))


def tekken(**changes: Any) -> dict[str, Any]:
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(token).decode()} for rank, token in enumerate(TOKENS)]
    config = {
        "pattern": r"\p{L}+|[^\p{L}]+",
        "default_vocab_size": 290,
        "default_num_special_tokens": 30,
        "version": "v3",
        **changes.pop("config", {}),
    }
    return {"config": config, "vocab": vocab, **changes}


def tiktoken(at: Path, content: str | None = None, name: str = "tokenizer.model", **config: Any) -> Tokenizer:
    (at / name).write_text(rank_lines() if content is None else content)
    return Tokenizer.from_directory(write_json(at, tokenizer_config=config))


def test_llama_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_ranks, "_LLAMA_RANKS", len(TOKENS))
    tokenizer = tiktoken(tmp_path)
    size = len(TOKENS)
    assert tokenizer.vocab_size == size + 256
    assert tokenizer.encode("he he", bos=True) == [size, 256, 257]
    assert tokenizer.encode("<|eot_id|>")[0] < 256
    assert tokenizer.encode_template("<|start_header_id|>he<|eot_id|>") == [size + 6, 256, size + 9]
    assert tokenizer.decode([size, 256]) == "he"
    assert tokenizer.token_bytes(size + 255) == b"<|reserved_special_token_247|>"
    assert (tokenizer.bos_id, tokenizer.eos_id) == (size, size + 1)


def test_the_tokens_of_the_config_come_before_the_known_ones(tmp_path: Path) -> None:
    declared = {
        "260": {"content": "[BOS]", "special": True},
        "300": {"content": "<call>", "special": False},
        "601": {"content": "<far>", "special": True},
    }
    config = {"tokenizer_class": "TikTokenTokenizer", "bos_token": "[BOS]", "added_tokens_decoder": declared}
    tokenizer = tiktoken(tmp_path, name="tiktoken.model", **config)
    assert (tokenizer.bos_id, tokenizer.vocab_size) == (260, 602)
    assert tokenizer.encode("he<call>he") == [256, 300, 256]
    assert tokenizer.encode_template("[BOS]<|reserved_token_261|><far>") == [260, 261, 601]
    assert tokenizer.decode([300, 601, 550]) == "<call>"


@pytest.mark.parametrize(
    ("content", "config", "reason"),
    [
        (
            None,
            {},
            r"is a list of 260 ranks without the pattern .* known are Llama 3 \(128000 ranks\), and .*QWenTokeni",
        ),
        ("aGU= 0\nwhat\n", {}, "line 2 is not a base64 string and a rank"),
        ("aGU= 0\nabcde= 1\n", {}, "line 2 is not base64"),
        ("aGU= 0\n", {"tokenizer_class": "QWenTokenizer"}, "must have all 256 bytes"),
        (rank_lines() + "aGVo 3\n", {"tokenizer_class": "QWenTokenizer"}, "must have all 256 bytes, and no id twice"),
        (None, {"added_tokens_decoder": {"9": {"content": "<a>"}}}, "token '<a>' has id 9, which is that of another"),
        (None, {"added_tokens_decoder": {"900": {"content": "he"}}}, "'he' is added to a vocabulary that has it"),
        (None, {"added_tokens_decoder": {"-1": {"content": "<a>"}}}, "'-1' is not the id of a token"),
        (None, {"added_tokens_decoder": {"9999999": {"content": "<a>"}}}, "9999999 is not the id of a token"),
        (None, {"added_tokens_decoder": {"900": {}}}, "must be an object with the token's content"),
        (
            None,
            {"added_tokens_decoder": {"900": {"content": "<a>"}, "901": {"content": "<a>"}}},
            "token '<a>' has two ids, 900 and 901",
        ),
    ],
)
def test_lists_of_ranks_that_are_wrong(tmp_path: Path, content: str, config: dict[str, Any], reason: str) -> None:
    if "added_tokens_decoder" in config:
        config = {"tokenizer_class": "QWenTokenizer", **config}
    with pytest.raises(LoadError, match=reason):
        tiktoken(tmp_path, content, **config)


def test_tekken(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write_json(tmp_path, tekken=tekken()))
    assert tokenizer.encode("he he", bos=True) == [1, 286, 62, 286]
    assert tokenizer.encode_template("<s>[INST]he[/INST]</s>") == [1, 3, 286, 4, 2]
    assert tokenizer.token_bytes(29) == b"<SPECIAL_29>"
    assert set(tokenizer.special_tokens) == {"bos_token", "eos_token", "unk_token", "pad_token"}
    # The last token is written as a special one is, and is still another one.
    assert tokenizer.encode("<s>") == [30 + ord("<"), 30 + ord("s"), 30 + ord(">")]
    assert tokenizer.decode([289]) == "<s>"
    assert tokenizer.vocab_size == 290


def test_tekken_in_a_packed_form(tmp_path: Path) -> None:
    pattern = r"[^\s\p{N}]+| ?\p{N}+|\s+"  # lets "<s>" and "zz!" be whole words
    tokenizer = Tokenizer.from_directory(write_json(tmp_path, tekken=tekken(config={"pattern": pattern})))
    encoder = tokenizer.encoder
    assert isinstance(encoder, LibraryEncoder)
    tables = pack_bpe(encoder.to_json(), [encoder.entry(number) for number in range(tokenizer.vocab_size)])
    assert tables is not None
    packed = PackedBpe(tables[0], memoryview(tables[1]))
    for text in ("he he", "zz!", "<s>", "[INST]", "<SPECIAL_29>", "zz! he 12\n"):
        assert packed.encode(text) == encoder.encode(text), text
    assert encoder.encode("<s>") == [289]
    assert packed.entry(29) == "<SPECIAL_29>"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config": {"pattern": None}}, "config.pattern must be a string"),
        ({"config": {"pattern": "("}}, "its tokenizer is broken"),
        ({"config": {"default_vocab_size": "a"}}, "config.default_vocab_size must be an integer"),
        ({"config": {"default_num_special_tokens": -1}}, "config.default_num_special_tokens must be an integer"),
        ({"config": {"default_num_special_tokens": 5}}, "special_tokens must have ranks below 5"),
        ({"config": {"default_vocab_size": 400}}, "vocab has 260 different tokens for 370 ids"),
        ({"vocab": [{"rank": 1, "token_bytes": "aGU="}]}, r"vocab\[0\] must have token_bytes and the rank 0"),
        ({"vocab": [{"rank": 0, "token_bytes": "é"}]}, r"vocab\[0\] is not base64"),
        ({"vocab": 3}, "vocab has 0 different tokens"),
        ({"special_tokens": [{"rank": 0}]}, "special_tokens must be objects"),
        ({"special_tokens": [{"rank": -1, "token_str": "a"}]}, "special_tokens must be objects"),
        ({"special_tokens": []}, "special_tokens must be objects"),
    ],
)
def test_tekken_that_is_wrong(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoadError, match=rf"tekken\.json: .*{reason}"):
        Tokenizer.from_directory(write_json(tmp_path, tekken=tekken(**changes)))


def byte_level(at: Path, merges: str = "#version: 0.2\nh e\n", **files: Any) -> Tokenizer:
    (at / "merges.txt").write_text(merges)
    vocab = {**byte_level_alphabet(), "he": 256, "<|end|>": 260}
    return Tokenizer.from_directory(write_json(at, **{"vocab": vocab, **files}))


def test_flags_of_declared_tokens_count(tmp_path: Path) -> None:
    declared = {
        "260": {"content": "<|end|>", "special": True, "rstrip": True},
        "262": {"content": "<x>", "special": False, "lstrip": True},
    }
    tokenizer = byte_level(tmp_path, tokenizer_config={"added_tokens_decoder": declared}, added_tokens={"<y>": 263})
    assert tokenizer.encode_template("he<|end|>  he <x>") == [256, 260, 256, 262]
    assert tokenizer.encode("he <x>he") == [256, 262, 256]
    assert tokenizer.special_ids == {260, 263}
    assert tokenizer.decode([262, 263, 261]) == "<x>"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (
            {"tokenizer_config": {"tokenizer_class": "CLIPTokenizerFast"}},
            "tokenizer_class must be one of GPT2Tokenizer",
        ),
        ({"merges": "h e x\n"}, r"merges\.txt: 'h e x' is not two entries"),
        ({"merges": "h zz\n"}, "its tokenizer is broken"),
        ({"vocab": {"a": -1}}, r"vocab\.json: must give each"),
        ({"vocab": {"a": True}}, r"vocab\.json: must give each"),
        ({"added_tokens": {"he": 300}}, "token 'he' has id 300, but vocab.json has 'he' and 256"),
        ({"added_tokens": {"<z>": 256}}, "token '<z>' has id 256, but vocab.json has 'he' and 256"),
        ({"added_tokens": {"<z>": "a"}}, r"added_tokens\.json: 'a' is not the id of a token"),
        (
            {"added_tokens": {"<z>": 300}, "tokenizer_config": {"added_tokens_decoder": {"300": {"content": "<y>"}}}},
            "token '<z>' has id 300, which is that of '<y>'",
        ),
    ],
)
def test_vocab_and_merges_that_are_wrong(tmp_path: Path, files: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoadError, match=reason):
        byte_level(tmp_path, **files)


WORDS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nhe\n##he\nHe\n##.\n.\n"


def word_piece(at: Path, content: bytes, **config: Any) -> Tokenizer:
    (at / "vocab.txt").write_bytes(content)
    return Tokenizer.from_directory(write_json(at, tokenizer_config=config))


def test_word_piece(tmp_path: Path) -> None:
    tokenizer = word_piece(tmp_path, WORDS.encode())
    assert tokenizer.encode("HEhe. xyz", bos=True) == [2, 4, 5, 8, 1]
    assert tokenizer.decode([2, 4, 5, 4, 8, 3]) == "hehe he."
    assert tokenizer.special_ids == {0, 1, 2, 3}
    assert word_piece(tmp_path, WORDS.replace("\n", "\r\n").encode(), do_lower_case=False).encode("He he") == [6, 4]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"he\n", "has no token for unknown words"), (b"\xff\n", "is not UTF-8 at byte 0"), (b"\n" * (1 << 21), "lines")],
)
def test_word_pieces_that_are_wrong(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(LoadError, match=rf"vocab\.txt: .*{reason}"):
        word_piece(tmp_path, content)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(200 << 20)
    with pytest.raises(LoadError, match="209715200 bytes are too many for a tokenizer"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({}))
    assert Tokenizer.is_in(tmp_path)
