"""Tokenizers in every kind of file against the libraries of such files; see tools/make_tokenizer_goldens.py."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from windlass.text.detokenizer import IncrementalDetokenizer
from windlass.text.gguf_tokenizer import read_gguf_tokenizer
from windlass.text.tokenizer import Tokenizer

GOLDENS = Path(__file__).parent / "goldens" / "tokenizers"
NAMES = sorted(path.stem for path in GOLDENS.glob("*.json"))


def written(name: str, at: Path) -> tuple[Tokenizer, list[list[Any]]]:
    """The tokenizer of a golden, from its files, and the cases."""
    golden = json.loads((GOLDENS / f"{name}.json").read_text())
    for file, content in golden["files"].items():
        data = content.encode() if isinstance(content, str) else base64.b64decode(content["base64"])
        (at / file).write_bytes(data)
    return Tokenizer.from_directory(at), golden["cases"]


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_texts(tmp_path: Path, name: str) -> None:
    tokenizer, cases = written(name, tmp_path)
    assert len(cases) > 100
    wrong = [(text, ids, found) for text, ids, *_ in cases if (found := tokenizer.encode(text)) != ids]
    assert wrong == []
    for _, ids, *decoded in cases:
        # SentencePiece writes " ⁇ " for a character that it does not know; this engine writes nothing.
        if decoded and " ⁇ " not in decoded[0]:
            assert tokenizer.decode(ids) == decoded[0]
        detokenizer = IncrementalDetokenizer(tokenizer)
        pieces = [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]
        assert "".join(pieces) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("bert")])
def test_word_pieces_are_the_same_in_a_gguf_file(tmp_path: Path, name: str) -> None:
    _, cases = written(name, tmp_path)
    metadata: dict[str, Any] = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": []}
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    control = [line in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") for line in lines]
    for line, is_control in zip(lines, control, strict=True):
        # llama.cpp's converter gives pieces that begin a word a space, and takes the ## from the others.
        piece = line if is_control else line[2:] if line.startswith("##") else f"\u2581{line}"
        metadata["tokenizer.ggml.tokens"].append(piece)
    metadata["tokenizer.ggml.token_type"] = [3 if one else 1 for one in control]
    tokenizer = Tokenizer(*read_gguf_tokenizer(Path("m.gguf"), metadata))
    assert [(text, tokenizer.encode(text)) for text, *_ in cases] == [(text, ids) for text, ids, *_ in cases]


def test_there_are_goldens_of_every_kind() -> None:
    kinds = {name.split("-")[0] for name in NAMES}
    assert kinds == {"sentencepiece", "tiktoken", "tekken", "gpt2", "qwen2", "bert"}
