"""The packed encoder over characters gives the ids of the library, whatever becomes of spaces."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.sentencepiece_files import BYTE, sentencepiece_model
from support.sentencepiece_files import PIECES as ALL_PIECES
from support.text_files import added_token, byte_fallback_bpe, metaspace_tokenizer, sentencepiece_tokenizer, write_json
from windlass.text.library_tokenizer import LibraryEncoder
from windlass.text.packed_bpe import PackedBpe
from windlass.text.packing import pack_bpe, pack_sentencepiece
from windlass.text.sentencepiece_tokenizer import SentencePieceEncoder
from windlass.text.tokenizer import BOUNDARY, Tokenizer

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
PIECES_OF_A_MODEL = [*ALL_PIECES, ("▁▁", 0.0, 4), ("s▁h", 0.0, 4)]
BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
PIECES = ["<unk>", "▁", "▁▁", "a", "b", "ab", "ba", "aba", "▁a", "▁ab", "é", "\n", "🦊"]
MERGES = [["a", "b"], ["▁", "▁"], ["b", "a"], ["▁", "a"], ["ab", "a"], ["▁a", "b"], ["▁", "ab"], ["a", "ba"]]


def small(*, num_bytes: int = 256, unknown: bool = True, **changes: Any) -> dict[str, Any]:
    """A vocabulary of few letters, in which merges compete."""
    names = [*PIECES, *(f"<0x{byte:02X}>" for byte in range(num_bytes))]
    model = byte_fallback_bpe({name: number for number, name in enumerate(names)}, MERGES)
    if not unknown:
        model["unk_token"] = None
    return sentencepiece_tokenizer(
        **{
            "model": model,
            "added_tokens": [added_token(0, "<unk>"), added_token(900, "<t> "), added_token(901, "<s", special=False)],
            **changes,
        }
    )


KINDS: dict[str, dict[str, Any]] = {
    "prepend": small(),
    "no bytes, no unknown": small(num_bytes=0, unknown=False),
    "no bytes after all": small(num_bytes=0),
    "gemma": small(normalizer=REPLACE, pre_tokenizer=SPLIT),
    "no bytes": small(model={**small()["model"], "byte_fallback": False}),
    "spaces stay": small(normalizer=None),
    **{
        f"metaspace, {scheme}": small(normalizer=None, pre_tokenizer=metaspace_tokenizer(scheme)["pre_tokenizer"])
        for scheme in ("first", "always", "never")
    },
}


def packed(tokenizer: Tokenizer) -> Tokenizer | None:
    encoder = tokenizer.encoder
    assert isinstance(encoder, LibraryEncoder)
    tables = pack_bpe(encoder.to_json(), [encoder.entry(token_id) for token_id in range(tokenizer.vocab_size)])
    if tables is None:
        return None
    meta, sections = tables
    return Tokenizer(PackedBpe(json.loads(json.dumps(meta)), memoryview(sections)), tokenizer.facts, tokenizer.path)


def both(whole: dict[str, Any], at: Path) -> tuple[Tokenizer, Tokenizer]:
    tokenizer = Tokenizer.from_directory(write_json(at, tokenizer=whole))
    other = packed(tokenizer)
    assert other is not None
    return tokenizer, other


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    return both(KINDS[request.param], tmp_path_factory.mktemp("kind"))


LETTERS = st.sampled_from([*"aaabb   ▁é\nxß", "🦊", "👍", BOUNDARY, "<s", "<t> ", "<", "\x00"])


@settings(max_examples=200, deadline=None)
@given(st.lists(LETTERS, max_size=40))
def test_any_text(pair: tuple[Tokenizer, Tokenizer], letters: list[str]) -> None:
    text = "".join(letters)
    assert pair[1].encode(text) == pair[0].encode(text)
    assert pair[1].encode_template(text) == pair[0].encode_template(text)


@pytest.mark.parametrize("text", ["", " ", "a" * 3000, "ab" * 2000, " " * 2000, "ß" * 500])
def test_long_words(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    assert pair[1].encode(text) == pair[0].encode(text)


@pytest.fixture(scope="module")
def phi3_packed(phi3: Tokenizer) -> Tokenizer:
    found = packed(phi3)
    assert found is not None
    return found


def test_a_real_tokenizer(data_dir: Path, phi3: Tokenizer, phi3_packed: Tokenizer) -> None:
    text = (data_dir / "text" / "tinyshakespeare.txt").read_text()[:60_000]
    special = "<|user|> \n naïve 東京 🦊 <|end|>\n  <s>x"
    for one in (text, special, *(data_dir / "tokenizers/vectors/ggml-vocab-phi-3.gguf.inp").read_text().split("\n__")):
        assert phi3_packed.encode(one) == phi3.encode(one)
        assert phi3_packed.encode_template(one) == phi3.encode_template(one)
    assert phi3_packed.decode(range(32_064)) == phi3.decode(range(32_064))


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_with_a_real_tokenizer(phi3: Tokenizer, phi3_packed: Tokenizer, text: str) -> None:
    assert phi3_packed.encode(text) == phi3.encode(text)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Prepend", "prepend": "_"}},
        {"normalizer": None, "pre_tokenizer": {**metaspace_tokenizer("first")["pre_tokenizer"], "split": True}},
        {"pre_tokenizer": metaspace_tokenizer("first")["pre_tokenizer"]},
        {"normalizer": None, "pre_tokenizer": SPLIT},
        {"added_tokens": [added_token(0, "<unk>"), added_token(900, "<t>", special=False, normalized=True)]},
        {
            "added_tokens": [
                added_token(0, "<unk>", normalized=True),
                added_token(900, "<t>", special=False),
            ]
        },
        {"num_bytes": 100},
        {"model": {**small(num_bytes=0)["model"], "fuse_unk": False}},
        {"model": {**small()["model"], "ignore_merges": True}},
        {"model": {**small()["model"], "dropout": 0.5}},
    ],
)
def test_what_is_not_known_stays_with_the_library(tmp_path: Path, change: dict[str, Any]) -> None:
    assert packed(Tokenizer.from_directory(write_json(tmp_path, tokenizer=small()))) is not None
    tokenizer = Tokenizer.from_directory(write_json(tmp_path, tokenizer=small(**change)))
    assert packed(tokenizer) is None


@pytest.mark.parametrize("config", [{}, {"legacy": False}, {"add_prefix_space": False}])
@pytest.mark.parametrize("with_bytes", [False, True])
def test_a_sentencepiece_model(tmp_path: Path, config: dict[str, Any], with_bytes: bool) -> None:
    data = sentencepiece_model([*PIECES_OF_A_MODEL, *(BYTES if with_bytes else ())], trainer={35: int(with_bytes)})
    (tmp_path / "tokenizer.model").write_bytes(data)
    tokenizer = Tokenizer.from_directory(write_json(tmp_path, tokenizer_config=config, added_tokens={"<t>": 300}))
    encoder = tokenizer.encoder
    assert isinstance(encoder, SentencePieceEncoder)
    tables = pack_sentencepiece(encoder)
    assert tables is not None
    other = Tokenizer(PackedBpe(tables[0], memoryview(tables[1])), tokenizer.facts, tokenizer.path)
    for letters in itertools.product(
        ["he", " ", "s", "h", "e", "ß", "ß東", "<t>", "<s>", BOUNDARY, "▁", "<|user|>", "s h"], repeat=3
    ):
        text = "".join(letters)
        assert other.encode(text) == tokenizer.encode(text), text
        assert other.encode_template(text) == tokenizer.encode_template(text), text
    assert [other.token_bytes(number) for number in range(301)] == [tokenizer.token_bytes(n) for n in range(301)]


@pytest.mark.parametrize(
    "options",
    [
        {"kind": 1},
        {"normalizer": {4: 1}},
        {"trainer": {24: 1}},
        {"pieces": [*PIECES_OF_A_MODEL[:-1], ("hehe", 0.0, 5)]},
    ],
)
def test_other_sentencepiece_models_are_not_packed(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(**{"pieces": PIECES_OF_A_MODEL, **options}))
    encoder = Tokenizer.from_directory(tmp_path).encoder
    assert isinstance(encoder, SentencePieceEncoder)
    assert pack_sentencepiece(encoder) is None


def test_special_tokens_after_normalization_do_not_matter(tmp_path: Path) -> None:
    tokenizer, other = both(small(added_tokens=[added_token(0, "<unk>", normalized=True)]), tmp_path)
    assert other.encode("a<unk>b") == tokenizer.encode("a<unk>b")
