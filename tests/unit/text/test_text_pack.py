"""A tokenizer and a template from a packed file do what the ones from the model's own files do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel

from windlass.errors import InvalidRequestError, LoadError
from windlass.text import text_pack
from windlass.text.library_tokenizer import LibraryEncoder
from windlass.text.packed_bpe import PackedBpe, pack_bpe
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
    (tmp_path / "cache").mkdir()
    return Cache(tmp_path / "cache")


def packed(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer from tables."""
    encoder = tokenizer.encoder
    assert isinstance(encoder, LibraryEncoder)
    tables = pack_bpe(encoder.to_json(), [encoder.entry(token_id) for token_id in range(tokenizer.vocab_size)])
    assert tables is not None
    meta, sections = tables
    return Tokenizer(PackedBpe(json.loads(json.dumps(meta)), memoryview(sections)), tokenizer.facts, tokenizer.path)


@pytest.fixture(scope="module")
def qwen2_packed(qwen2: Tokenizer) -> Tokenizer:
    return packed(qwen2)


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer trained on words of few letters, with many merges that overlap, and its packed form."""
    library = Library(models.BPE(ignore_merges=request.param))
    library.pre_tokenizer = ByteLevel(add_prefix_space=False)
    library.decoder = ByteLevelDecoder()
    words = ["".join(letters) for length in range(1, 10) for letters in product("aab", repeat=length)][::7]
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=ByteLevel.alphabet(), special_tokens=["<end>"], show_progress=False
    )
    library.train_from_iterator([" ".join(words)], trainer)
    directory = tmp_path_factory.mktemp("trained")
    library.save(str(directory / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(directory)
    return tokenizer, packed(tokenizer)


TEXTS = (
    "",
    " ",
    "Hello, world! It's 3.14159 o'clock.",
    "naïve café — Größe 東京都 привет 🦊👩‍👩‍👧",
    "def f(x):\n\treturn  x ** 2\r\n\n\n    # done",
    "<|im_start|>user\n<|im_end|>",
    "a" * 500,
    "ab" * 300 + " " + "ba" * 301,
    "\ufdd0x\ufdd0\ufdd0 y\ufdd0",
    "\x00\x01\x7f\u200b\ufeff",
    "zażółć gęślą jaźń" * 20,
)


@pytest.mark.parametrize("text", TEXTS)
def test_the_ids_of_a_real_tokenizer(qwen2: Tokenizer, qwen2_packed: Tokenizer, text: str) -> None:
    assert qwen2_packed.encode(text) == qwen2.encode(text)
    assert qwen2_packed.encode_template(text) == qwen2.encode_template(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_the_ids_of_any_text(qwen2: Tokenizer, qwen2_packed: Tokenizer, text: str) -> None:
    try:
        wanted = qwen2.encode(text)
    except InvalidRequestError:
        with pytest.raises(InvalidRequestError):
            qwen2_packed.encode(text)
        return
    assert qwen2_packed.encode(text) == wanted


@pytest.mark.parametrize("pair", [False, True], indirect=True, ids=["merges", "whole-words"])
@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="aab ", max_size=60))
def test_merges_that_compete(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    assert pair[1].encode(text) == pair[0].encode(text)


def test_every_token_reads_the_same(qwen2: Tokenizer, qwen2_packed: Tokenizer) -> None:
    for token_id in range(qwen2.vocab_size + 3):
        assert qwen2_packed.token_bytes(token_id) == qwen2.token_bytes(token_id)
        assert qwen2_packed.text_bytes(token_id) == qwen2.text_bytes(token_id)


def test_what_is_not_byte_level_bpe_is_not_packed(phi3: Tokenizer) -> None:
    encoder = phi3.encoder
    assert isinstance(encoder, LibraryEncoder)
    assert pack_bpe(encoder.to_json(), []) is None


def test_kinds_of_bpe_that_are_not_known(qwen2: Tokenizer) -> None:
    encoder = qwen2.encoder
    assert isinstance(encoder, LibraryEncoder)
    whole: dict[str, Any] = json.loads(encoder.to_json())
    small = {**whole["model"], "vocab": {"a": 0, "b": 1}, "merges": []}
    plain = {**whole, "model": small, "added_tokens": []}
    assert pack_bpe(json.dumps(plain), ["a", "b"]) is not None
    for change in (
        {"dropout": 0.1},
        {"unk_token": "<unk>"},
        {"fuse_unk": True},
        {"byte_fallback": True},
        {"end_of_word_suffix": "</w>"},
        {"continuing_subword_prefix": "##"},
        {"type": "Unigram"},
    ):
        assert pack_bpe(json.dumps({**plain, "model": {**small, **change}}), ["a", "b"]) is None
    token = {**whole["added_tokens"][0], "content": "é", "id": 2}
    assert pack_bpe(json.dumps({**plain, "added_tokens": [token]}), ["a", "b", "é"]) is None
    assert pack_bpe(json.dumps({**plain, "pre_tokenizer": {"type": "Whitespace"}}), ["a", "b"]) is None


def model_directory(data_dir: Path, at: Path, template: str = TEMPLATE) -> Path:
    at.mkdir()
    shutil.copy(data_dir / "tokenizers" / "qwen2" / "tokenizer.json", at)
    config = json.loads((data_dir / "tokenizers" / "qwen2" / "tokenizer_config.json").read_text())
    (at / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return at


def test_a_text_model_from_the_cache(data_dir: Path, tmp_path: Path, cache: Cache) -> None:
    directory = model_directory(data_dir, tmp_path / "model")
    made, restored = (TextModel.load(directory, {}, None, cache=cache) for _ in range(2))
    assert isinstance(made.tokenizer, Tokenizer)
    assert isinstance(restored.tokenizer, Tokenizer)
    assert isinstance(made.tokenizer.encoder, LibraryEncoder)
    assert isinstance(restored.tokenizer.encoder, PackedBpe)
    assert restored.tokenizer.facts == made.tokenizer.facts
    assert restored.tokenizer.path == made.tokenizer.path
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
    assert isinstance(text.tokenizer, Tokenizer)
    assert isinstance(text.tokenizer.encoder, LibraryEncoder)
    assert path.read_bytes() == whole


def test_tables_that_are_cut_off_are_refused(qwen2: Tokenizer) -> None:
    encoder = qwen2.encoder
    assert isinstance(encoder, LibraryEncoder)
    tables = pack_bpe(encoder.to_json(), [encoder.entry(token_id) for token_id in range(qwen2.vocab_size)])
    assert tables is not None
    for cut in (0, 3, 1000, 3_000_000, len(tables[1]) - 1):
        with pytest.raises((ValueError, TypeError)):
            PackedBpe(tables[0], memoryview(tables[1][:cut]))


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
