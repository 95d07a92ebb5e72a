"""Tokenizers in GGUF files: the vectors of llama.cpp, and metadata that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from windlass.errors import LoadError
from windlass.json_files import read_json_object
from windlass.text.gguf_token_ids import read_stop_ids
from windlass.text.gguf_tokenizer import read_gguf_tokenizer
from windlass.text.library_tokenizer import LibraryEncoder
from windlass.text.packing import pack_bpe
from windlass.text.text_model import TextModel
from windlass.text.tokenizer import Tokenizer
from windlass.weights.gguf import read_gguf

END_OF_CASE = "\n__ggml_vocab_test__\n"

BPE: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": ["a", "b", "Ġ", "ab", "Ġab", "<|end|>", "filler", "filler"],
    "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 3, 1, 1],
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    "tokenizer.ggml.eos_token_id": 5,
}
SPM: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "▁ab", "ba"],
    "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -5.0, -6.0, -7.0, -2.0, -3.0, -1.0],
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.seperator_token_id": 0xFFFFFFFF,
}
WORD_PIECES: dict[str, Any] = {
    "tokenizer.ggml.model": "bert",
    "tokenizer.ggml.tokens": ["[UNK]", "[CLS]", "[SEP]", "\u2581he", "\u2581a", "re", ".", "\u2581.", "\u2581hea"],
    "tokenizer.ggml.token_type": [3, 3, 3, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.seperator_token_id": 2,
}


def tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer(*read_gguf_tokenizer(Path("m.gguf"), metadata))


@pytest.mark.parametrize("name", ["phi-3", "gpt-2"])
def test_vectors(data_dir: Path, name: str) -> None:
    path = data_dir / "vocab-gguf" / f"ggml-vocab-{name}.gguf"
    vectors = data_dir / "tokenizers" / "vectors" / path.name
    texts = Path(f"{vectors}.inp").read_text(encoding="utf-8").split(END_OF_CASE)
    assert texts.pop() == ""
    expected = Path(f"{vectors}.out").read_text().removesuffix("\n").split("\n")
    made = Tokenizer(*read_gguf_tokenizer(path, read_gguf(path).metadata))
    assert len(texts) == len(expected) > 40
    for text, ids in zip(texts, expected, strict=True):
        assert made.encode(text) == [int(one) for one in ids.split()], text
        assert made.decode(made.encode(text)) == text


def test_qwen_2_is_the_same_from_either_file(data_dir: Path) -> None:
    """A byte-level BPE of full size, from what its tokenizer.json says in GGUF's way."""
    directory = data_dir / "tokenizers" / "qwen2"
    source = read_json_object(directory / "tokenizer.json")
    vocab: dict[str, int] = source["model"]["vocab"]
    added = {token["id"]: token for token in source["added_tokens"]}
    tokens = {token_id: token for token, token_id in vocab.items()} | {
        i: token["content"] for i, token in added.items()
    }
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in source["model"]["merges"]]
    made = tokenizer(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": [tokens.get(i, f"[PAD{i}]") for i in range(max(tokens) + 1)],
            "tokenizer.ggml.token_type": [3 if i in added else 1 for i in range(max(tokens) + 1)],
            "tokenizer.ggml.merges": merges,
        }
    )
    expected = Tokenizer.from_directory(directory)
    text = (data_dir / "text" / "tinyshakespeare.txt").read_text()[:20_000] + " 1234 don't  x\n\n y\t\u00e9\u4f60\u597d"
    assert made.encode(text) == expected.encode(text)
    assert made.encode_template("<|im_start|>user\nhi<|im_end|>") == expected.encode_template(
        "<|im_start|>user\nhi<|im_end|>"
    )


def test_pairs_merge_by_score() -> None:
    made = tokenizer(SPM)
    assert made.encode("ab") == [8]
    assert made.encode("aba") == [4, 5, 9]
    assert made.encode("ab\n", bos=True) == [1, 8, 3]
    assert made.decode([1, 8, 3, 2]) == "ab\n"
    assert tokenizer({**SPM, "tokenizer.ggml.add_space_prefix": False}).encode("ab") == [7]
    assert tokenizer({**SPM, "tokenizer.ggml.add_bos_token": False}).encode("ab", bos=True) == [8]


def test_word_pieces() -> None:
    made = tokenizer(WORD_PIECES)
    assert made.encode("He\u0301re. [SEP] a") == [3, 5, 7, 0, 0, 0, 4]
    assert made.decode([3, 5, 7, 4]) == "here. a"
    assert made.around == ((1,), (2,))
    cased = tokenizer({**WORD_PIECES, "tokenizer.ggml.tokens": [*WORD_PIECES["tokenizer.ggml.tokens"][:8], "\u2581A"]})
    assert cased.encode("A a He") == [8, 4, 0]
    assert tokenizer({**WORD_PIECES, "tokenizer.ggml.normalizer.lowercase": False}).encode("A a") == [0, 4]
    assert tokenizer({**WORD_PIECES, "tokenizer.ggml.normalizer.strip_accents": False}).encode("A h\u00e9") == [4, 0]
    assert tokenizer({**WORD_PIECES, "tokenizer.ggml.cls_token_id": 2}).around == ((2,), (2,))
    assert tokenizer({**WORD_PIECES, "tokenizer.ggml.add_sep_token": False}).around == ((1,), ())


def test_what_is_put_around_a_text() -> None:
    assert tokenizer(SPM).around == ((1,), ())
    assert tokenizer(BPE).around == ((), ())
    assert tokenizer({**BPE, "tokenizer.ggml.add_eos_token": True}).around == ((), (5,))
    whole = {**SPM, "tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.add_bos_token": False}
    assert tokenizer(whole).around == ((), (2,))
    assert tokenizer(whole).encode("ab", bos=True) == [8]


@pytest.mark.parametrize(
    ("pre", "cuts"),
    [
        ("gpt-2", ["Don", "'t", " 1234", " go", "!!/", "\n\n", " x"]),
        ("smollm", ["Don", "'t", " ", "1", "2", "3", "4", " go", "!!/", "\n\n", " x"]),
        ("llama-bpe", ["Don", "'t", " ", "123", "4", " go", "!!/\n\n", " x"]),
        ("qwen2", ["Don", "'t", " ", "1", "2", "3", "4", " go", "!!/\n\n", " x"]),
        ("qwen35", ["Don", "'t", " ", "1", "2", "3", "4", " go", "!!/\n\n", " x"]),
        ("gpt-4o", ["Don't", " ", "123", "4", " go", "!!/\n\n", " x"]),
        ("tekken", ["Don", "'t", " ", "1", "2", "3", "4", " go", "!!/\n\n", " x"]),
        ("deepseek-v3", ["Don", "'t", " ", "123", "4", " go", "!!/\n\n", " x"]),
    ],
)
def test_ways_of_cutting_words(pre: str, cuts: list[str]) -> None:
    encoder = tokenizer({**BPE, "tokenizer.ggml.pre": pre}).encoder
    assert isinstance(encoder, LibraryEncoder)
    text = "".join(cuts)
    found = Library.from_str(encoder.to_json()).pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in found] == cuts
    assert pack_bpe(encoder.to_json(), [encoder.entry(number) for number in range(8)]) is not None


def test_llama_3_puts_its_bos_first_and_keeps_whole_words() -> None:
    metadata = {**BPE, "tokenizer.ggml.bos_token_id": 5, "tokenizer.ggml.merges": ["a b"]}
    other = tokenizer({**metadata, "tokenizer.ggml.pre": "llama-bpe"})
    assert other.encode(" ab", bos=True) == [5, 4]
    assert tokenizer({**metadata, "tokenizer.ggml.pre": "dbrx"}).encode(" ab", bos=True) == [2, 3]


def test_byte_level() -> None:
    made = tokenizer(BPE)
    assert made.encode("ab ab") == [3, 4]
    assert made.encode("a<|end|>"[:1]) == [0]
    assert made.encode_template("ab<|end|>") == [3, 5]
    assert made.eos_id == 5
    assert made.vocab_size == 8
    assert read_stop_ids(Path("m.gguf"), {**BPE, "tokenizer.ggml.eot_token_id": 6}, 8) == {5, 6}
    with pytest.raises(LoadError, match="eot_token_id is 8, which is not one of 8 tokens"):
        read_stop_ids(Path("m.gguf"), {"tokenizer.ggml.eot_token_id": 8}, 8)


@pytest.mark.parametrize(
    ("base", "change", "reason"),
    [
        (BPE, {"model": "t5"}, "model is 't5'; supported: 'llama' (SentencePiece with scores), 'gpt2' (BPE), 'bert'"),
        (BPE, {"model": "bert"}, "unknown_token_id is missing"),
        (SPM, {"add_eos_token": 1}, "add_eos_token is of the wrong type"),
        (BPE, {"model": None}, "model is missing"),
        (BPE, {"pre": "unheard-of"}, "pre is 'unheard-of', which is not supported; supported: gpt-2"),
        (BPE, {"tokens": []}, "tokens must be 1 to"),
        (BPE, {"tokens": [1, 2]}, "tokens must be 1 to"),
        (BPE, {"token_type": [1, 2]}, "token_type must have one int for each of 8 tokens"),
        (BPE, {"merges": ["ab"]}, "merges must be strings of two entries"),
        (BPE, {"merges": ["a zz"]}, "its tokenizer is broken"),
        (BPE, {"eos_token_id": 8}, "eos_token_id is 8, which is not one of 8 tokens"),
        (BPE, {"eos_token_id": True}, "eos_token_id is True"),
        (SPM, {"scores": [0.0] * 9}, "scores must have one float"),
        (SPM, {"scores": [float("nan")] * 10}, "scores has a number that is not finite"),
        (SPM, {"add_bos_token": 1}, "add_bos_token is of the wrong type"),
    ],
)
def test_metadata_that_is_wrong_is_refused(base: dict[str, Any], change: dict[str, Any], reason: str) -> None:
    metadata = {**base, **{f"tokenizer.ggml.{key}": value for key, value in change.items()}}
    with pytest.raises(LoadError) as caught:
        tokenizer({key: value for key, value in metadata.items() if value is not None})
    assert reason in str(caught.value)


def test_the_template_comes_along(data_dir: Path) -> None:
    path = data_dir / "vocab-gguf" / "ggml-vocab-phi-3.gguf"
    text = TextModel.from_gguf(path, read_gguf(path).metadata)
    ids = text.encode_chat([{"role": "user", "content": "Hi <|end|>"}])
    # The user's own <|end|> is plain text.
    assert ids.count(text.tokenizer.added_token_id("<|end|>")) == 1
    assert text.tokenizer.added_token_id("<|assistant|>") in ids
    assert 32000 in text.stop_token_ids
    named = {**read_gguf(path).metadata, "tokenizer.chat_template": 5}
    with pytest.raises(LoadError, match=r"tokenizer\.chat_template must be a string"):
        TextModel.from_gguf(path, json.loads(json.dumps(named)))
