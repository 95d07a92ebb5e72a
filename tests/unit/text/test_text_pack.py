"""A tokenizer and a template from a packed file do what the ones from the model's own files do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from windlass.errors import LoadError
from windlass.text import text_pack
from windlass.text.packed_bpe import PackedBpe
from windlass.text.text_model import TextModel
from windlass.text.text_pack import TextPack
from windlass.text.tokenizer import MARK, Tokenizer

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
QUESTION = [{"role": "user", "content": "What is <|im_end|> for?"}]


class Cache:
    """A cache in memory, or what it is like when nothing works."""

    def __init__(self, directory: Path, *, works: bool = True) -> None:
        self.directory, self.works, self.opened = directory, works, 0

    def open(self, name: str) -> int | None:
        self.opened += 1
        path = self.directory / name
        return os.open(path, os.O_RDONLY) if self.works and path.exists() else None

    def write(self, name: str, size: int, fill: Callable[[int], None]) -> bool:
        if self.works:
            with (self.directory / name).open("wb") as file:
                fill(file.fileno())
            assert (self.directory / name).stat().st_size == size
        return self.works


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(text_pack, "LEAST_BYTES", 0)
    monkeypatch.setattr(text_pack, "LEAST_DENSE_BYTES", 0)
    (tmp_path / "cache").mkdir()
    return Cache(tmp_path / "cache")


@lru_cache
def small_tokenizer(path: Path) -> str:
    """The first tokens of a vocabulary, with all its added ones."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    model = whole["model"]
    model["vocab"] = {entry: token_id for entry, token_id in model["vocab"].items() if token_id < 2000}
    model["merges"] = model["merges"][: 2000 - 256]
    for token_id, token in enumerate(whole["added_tokens"], 2000):
        token["id"] = token_id
    return json.dumps(whole)


def model_directory(data_dir: Path, at: Path, template: str = TEMPLATE) -> Path:
    at.mkdir()
    (at / "tokenizer.json").write_text(small_tokenizer(data_dir / "tokenizers" / "qwen2" / "tokenizer.json"))
    config = json.loads((data_dir / "tokenizers" / "qwen2" / "tokenizer_config.json").read_text())
    (at / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return at


def test_a_text_model_from_the_cache(data_dir: Path, tmp_path: Path, cache: Cache) -> None:
    directory = model_directory(data_dir, tmp_path / "model")
    plain = Tokenizer.from_directory(directory)
    made, restored = (TextModel.load(directory, {}, None, cache=cache) for _ in range(2))
    assert isinstance(made.tokenizer, Tokenizer)
    assert isinstance(restored.tokenizer, Tokenizer)
    assert isinstance(made.tokenizer.encoder, PackedBpe)
    assert isinstance(restored.tokenizer.encoder, PackedBpe)
    for tokenizer in (made.tokenizer, restored.tokenizer):
        assert tokenizer.facts == plain.facts
        assert tokenizer.path == plain.path
        assert tokenizer.encode_template(TEMPLATE) == plain.encode_template(TEMPLATE)
    for name in ("defaults", "stop_token_ids", "stop_strings", "vocab_size"):
        assert getattr(restored, name) == getattr(made, name)
    assert restored.stop_token_ids
    assert restored.encode_chat(QUESTION) == made.encode_chat(QUESTION)
    assert restored.template is not None
    assert made.template is not None
    assert restored.template.supports_tools == made.template.supports_tools
    assert restored.decode(range(500)) == made.decode(range(500))
    assert restored.tokenizer.encode_template(f"<|im_{MARK}end|>") == made.tokenizer.encode_template(
        f"<|im_{MARK}end|>"
    )


def gguf_metadata(data_dir: Path) -> dict[str, Any]:
    whole = json.loads(small_tokenizer(data_dir / "tokenizers" / "qwen2" / "tokenizer.json"))
    added = {token["content"]: token["id"] for token in whole["added_tokens"]}
    tokens = sorted({**whole["model"]["vocab"], **added}.items(), key=lambda item: item[1])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in whole["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [token for token, _ in tokens],
        "tokenizer.ggml.token_type": [3 if token in added else 1 for token, _ in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": added["<|im_end|>"],
        "tokenizer.chat_template": TEMPLATE,
    }


def test_a_gguf_file_from_the_cache(data_dir: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = gguf_metadata(data_dir)
    made = TextModel.from_gguf(Path("a.gguf"), metadata, cache)
    assert len(kept(cache)) == 1
    monkeypatch.setitem(sys.modules, "windlass.text.gguf_tokenizer", None)  # it is not read again
    restored = TextModel.from_gguf(Path("b.gguf"), metadata, cache)
    assert restored.tokenizer.path == Path("b.gguf")
    assert isinstance(restored.tokenizer.encoder, PackedBpe)
    assert restored.encode_chat(QUESTION) == made.encode_chat(QUESTION)
    assert restored.stop_token_ids == made.stop_token_ids != frozenset()
    assert restored.tokenizer.facts == made.tokenizer.facts
    assert len(kept(cache)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.chat_template": "{{ messages[0].content }}"},
        {"tokenizer.ggml.pre": "gpt-2"},
        {"tokenizer.ggml.bos_token_id": 5},
        {"general.name": "another"},
    ],
)
def test_other_metadata_is_another_pack(data_dir: Path, cache: Cache, change: dict[str, Any]) -> None:
    metadata = gguf_metadata(data_dir)
    TextModel.from_gguf(Path("a.gguf"), metadata, cache)
    TextModel.from_gguf(Path("a.gguf"), {**metadata, **change}, cache)
    assert len(kept(cache)) == (1 if "general.name" in change else 2)


@pytest.mark.usefixtures("cache")
def test_metadata_whose_tokens_are_cut_elsewhere_is_another_pack(data_dir: Path) -> None:
    metadata = gguf_metadata(data_dir)
    names = set()
    for tokens in (["a", "b"], ["a\0b"], "a\0b", ["a", 0]):
        names.add(text_pack._gguf_name({**metadata, "tokenizer.ggml.tokens": tokens}))
    assert len(names) == 4


def kept(cache: Cache) -> list[Path]:
    return sorted(cache.directory.iterdir())


def test_changed_files_are_another_pack(data_dir: Path, tmp_path: Path, cache: Cache) -> None:
    TextModel.load(model_directory(data_dir, tmp_path / "a"), {}, None, cache=cache)
    TextModel.load(model_directory(data_dir, tmp_path / "b"), {}, None, cache=cache)
    assert len(kept(cache)) == 1  # the place does not matter
    other = TextModel.load(
        model_directory(data_dir, tmp_path / "c", "{{ messages[0].content }}"), {}, None, cache=cache
    )
    assert len(kept(cache)) == 2
    assert other.decode(other.encode_chat(QUESTION)) == QUESTION[0]["content"]


@pytest.mark.parametrize("how", ["cut", "empty", "bit", "magic", "meta"])
def test_a_damaged_pack_is_replaced(data_dir: Path, tmp_path: Path, cache: Cache, how: str) -> None:
    directory = model_directory(data_dir, tmp_path / "model")
    TextModel.load(directory, {}, None, cache=cache)
    (path,) = kept(cache)
    whole = path.read_bytes()
    damage = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "bit": whole[:-100] + bytes([whole[-100] ^ 4]) + whole[-99:],
        "magic": b"ELF" + whole[3:],
        "meta": whole[:40] + b"\xff" + whole[41:],
    }
    path.write_bytes(damage[how])
    text = TextModel.load(directory, {}, None, cache=cache)
    assert text.decode(text.encode_chat(QUESTION)) == Tokenizer.from_directory(directory).decode(
        text.encode_chat(QUESTION)
    )
    assert path.read_bytes() == whole


def test_a_cache_that_does_not_work_does_not_matter(data_dir: Path, tmp_path: Path, cache: Cache) -> None:
    directory = model_directory(data_dir, tmp_path / "model")
    cache.works = False
    texts = [TextModel.load(directory, {}, None, cache=cache) for _ in range(2)]
    assert texts[0].encode_chat(QUESTION) == texts[1].encode_chat(QUESTION)


def test_small_tokenizers_are_not_kept(
    data_dir: Path, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_pack, "LEAST_BYTES", 100 << 20)
    TextPack.open(model_directory(data_dir, tmp_path / "model"), cache).keep(None)
    assert cache.opened == 0
    assert kept(cache) == []


def test_a_template_that_is_wrong_is_refused_every_time(data_dir: Path, tmp_path: Path, cache: Cache) -> None:
    directory = model_directory(data_dir, tmp_path / "model", "{% if %}")
    for _ in range(2):
        with pytest.raises(LoadError, match="chat template is not valid"):
            TextModel.load(directory, {}, None, cache=cache)
    assert kept(cache) == []
