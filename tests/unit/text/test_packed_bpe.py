"""The packed encoder gives the ids of the library that the vocabulary was made for, whatever the text and pattern."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library
from tokenizers.pre_tokenizers import ByteLevel

from windlass.errors import InvalidRequestError
from windlass.text.byte_decoding import byte_level_alphabet
from windlass.text.library_tokenizer import LibraryEncoder
from windlass.text.library_unicode import NO_NORMALIZATION, character_tables, normal_tables
from windlass.text.packed_bpe import PackedBpe
from windlass.text.packing import pack_bpe
from windlass.text.split_patterns import GPT2, UnknownPatternError, parse, read_cuts, tables_of
from windlass.text.tokenizer import Tokenizer

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def cut(*patterns: str) -> pre_tokenizers.Sequence:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS: dict[str, Any] = {
    "gpt2": ByteLevel(add_prefix_space=False),
    "qwen2": cut(QWEN2),
    "llama3": cut(LLAMA3),
    "o200k": cut(O200K),
    "deepseek": cut(*DEEPSEEK),
    "possessive": cut(QWEN2.replace("]?", "]?+").replace("]+", "]++")),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    ),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), ByteLevel(add_prefix_space=False)]
    ),
    "dropping": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\s+(?!\S)|\p{N}{2,}"), "removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


@pytest.fixture(scope="module")
def trained(data_dir: Path) -> Library:
    """A tokenizer whose merges know no words, so that every cut shows."""
    library = Library(models.BPE())
    library.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    lines = (data_dir / "text" / "tinyshakespeare.txt").read_text()[:60_000].splitlines(keepends=True)
    library.train_from_iterator([*lines, *TEXTS * 3, *(str(number * 37) for number in range(2000))], trainer)
    return library


def packed(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer from tables."""
    encoder = tokenizer.encoder
    assert isinstance(encoder, LibraryEncoder)
    tables = pack_bpe(encoder.to_json(), [encoder.entry(token_id) for token_id in range(tokenizer.vocab_size)])
    assert tables is not None
    meta, sections = tables
    return Tokenizer(PackedBpe(json.loads(json.dumps(meta)), memoryview(sections)), tokenizer.facts, tokenizer.path)


def both(library: Library, at: Path) -> tuple[Tokenizer, Tokenizer]:
    """The library's tokenizer, and its packed form."""
    library.save(str(at / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(at)
    return tokenizer, packed(tokenizer)


@pytest.fixture(scope="module")
def qwen2_packed(qwen2: Tokenizer) -> Tokenizer:
    return packed(qwen2)


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer trained on words of few letters, with many merges that overlap, and its packed form."""
    library = Library(models.BPE(ignore_merges=request.param))
    library.pre_tokenizer = ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    words = ["".join(letters) for length in range(1, 10) for letters in product("aab", repeat=length)][::7]
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=ByteLevel.alphabet(), special_tokens=["<end>"], show_progress=False
    )
    library.train_from_iterator([" ".join(words)], trainer)
    return both(library, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def cutter(
    request: pytest.FixtureRequest, trained: Library, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Tokenizer]:
    library = Library.from_str(trained.to_str())
    library.pre_tokenizer = PRE_TOKENIZERS[request.param]
    return both(library, tmp_path_factory.mktemp(request.param))


TEXTS = (
    "",
    " ",
    "Hello, world! It's 3.14159 o'clock. WE'LL SEE what they'Re, don’t, IT'ſ",
    "naïve café — Größe 東京都 привет 🦊👩‍👩‍👧 ǅungla Ⅻ ½ ٣٤٥ ขอบคุณ हिन्दी",
    "def f(x):\n\treturn  x ** 2\r\n\n\n    # done",
    "<|im_start|>user\n<|im_end|>",
    "a" * 500,
    "ab" * 300 + " " + "ba" * 301,
    "\ufdd0x\ufdd0\ufdd0 y\ufdd0",
    "\x00\x01\x7f\u200b\ufeff\x85\u2028 \u3000",
    "zażółć gęślą jaźń" * 20,
    "e\u0301 \u1100\u1161\u11a8 \uac00\u11a8 \u0041\u030a\u0323 \u0344 \u2126 \u0958 q\u0307\u0323\ufdd0\u0301",
    "1234567890 12 345/678  \r\n \n//\n  x",
)


@pytest.mark.parametrize("text", TEXTS)
def test_the_ids_of_a_real_tokenizer(qwen2: Tokenizer, qwen2_packed: Tokenizer, text: str) -> None:
    assert qwen2_packed.encode(text) == qwen2.encode(text)
    assert qwen2_packed.encode_template(text) == qwen2.encode_template(text)


def test_the_ids_of_a_long_text(data_dir: Path, qwen2: Tokenizer, qwen2_packed: Tokenizer) -> None:
    text = (data_dir / "text" / "tinyshakespeare.txt").read_text()[:200_000]
    assert qwen2_packed.encode(text) == qwen2.encode(text)


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


def test_a_lone_surrogate_is_refused(qwen2_packed: Tokenizer) -> None:
    with pytest.raises(TypeError, match="lone surrogate"):
        qwen2_packed.encoder.encode("a\ud800")


@pytest.mark.parametrize("text", ["a" * 100_000, "ab" * 50_000, " " * 100_000, "!?" * 50_000, "\u0301\u0323" * 20_000])
def test_a_word_of_any_length(qwen2: Tokenizer, qwen2_packed: Tokenizer, text: str) -> None:
    assert qwen2_packed.encode(text) == qwen2.encode(text)


def test_other_threads_go_on_meanwhile(qwen2_packed: Tokenizer) -> None:
    count, stop = 0, threading.Event()

    def run() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(0)  # gives the interpreter's lock away, and takes it again

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        sys.setswitchinterval(1000)  # from here on nobody has to give it away
        before = count
        qwen2_packed.encode("a" * 300_000)
        after = count
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join(60)
    assert after > before


@pytest.mark.parametrize("pair", [False, True], indirect=True, ids=["merges", "whole-words"])
@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="aab ", max_size=60))
def test_merges_that_compete(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    assert pair[1].encode(text) == pair[0].encode(text)


LETTERS = (
    "aZ\u00e9\u00c9\u01c5\u02b0\u4e2d\u3042\u0301\u0903 5\u0663\u00bd\u2167.,!'’/-_<|>$€+=^\t\n\r\u0085\u00a0\u2003\x00"
    "\u200d\U0001f98a\u0378"
)
PIECES = st.sampled_from(
    [*LETTERS, "'s", "'LL", "'ve", "'K", "'ſ", "  ", "\r\n", "the", "The", "THE", "123", "1234", "\U00016ff7"]
)


@pytest.mark.parametrize("cutter", sorted(PRE_TOKENIZERS), indirect=True)
@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_every_pattern_cuts_as_the_library_does(cutter: tuple[Tokenizer, Tokenizer], text: str) -> None:
    assert cutter[1].encode(text) == cutter[0].encode(text)


@pytest.mark.parametrize("cutter", sorted(PRE_TOKENIZERS), indirect=True)
def test_every_pattern_cuts_long_texts(cutter: tuple[Tokenizer, Tokenizer], data_dir: Path) -> None:
    text = (data_dir / "text" / "tinyshakespeare.txt").read_text()[:20_000] + "\n".join(TEXTS)
    assert cutter[1].encode(text) == cutter[0].encode(text)


ALL = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)


@pytest.mark.parametrize(
    "charset", [r"\p{L}", r"\p{N}", r"\s", r"[^\s\p{L}\p{N}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", "(?i:s)", "[一-龥]"]
)
def test_sets_hold_what_the_library_says(charset: str) -> None:
    tables = character_tables([charset], NO_NORMALIZATION)
    found = pre_tokenizers.Split(Regex(f"{charset}+"), "removed", invert=True)
    wanted = bytearray(0x110000)
    for first in range(0, 0x110000, 0x8800):
        text = "".join(chr(code) for code in range(first, first + 0x8800) if not 0xD800 <= code < 0xE000)
        for part, _ in found.pre_tokenize_str(text):
            wanted[ord(part[0]) : ord(part[-1]) + 1] = b"\1" * (ord(part[-1]) + 1 - ord(part[0]))
    wanted[0xD800:0xE000] = bytes(0x800)
    got = bytearray()
    for block in tables.blocks:
        got += bytes(tables.sets[kind] & 1 for kind in tables.kinds[block * 256 : block * 256 + 256])
    got[0xD800:0xE000] = bytes(0x800)
    assert got == wanted
    assert sum(got) > 1


@pytest.fixture(scope="module")
def normalizing() -> Callable[[str], str]:
    """An encoder of single bytes that does nothing but normalize, and what it makes of a text."""
    vocab = byte_level_alphabet()
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    whole = {
        "model": model,
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    }
    entries = sorted(vocab, key=vocab.__getitem__)
    tables = pack_bpe(json.dumps(whole), entries)
    assert tables is not None
    encoder = PackedBpe(tables[0], memoryview(tables[1]))
    return lambda text: bytes(encoder.encode(text)).decode()


@pytest.mark.parametrize("around", ["\n{}", "{}\u0301", "a\u0345{}", "\uac00{}", "\u1100{}", "{}\u0323\u0307"])
def test_normalization_of_every_character(normalizing: Callable[[str], str], around: str) -> None:
    before, after = around.split("{}")
    text = before + (after + before).join(ALL) + after
    assert normalizing(text) == normalizers.NFC().normalize_str(text)


MARKS = st.sampled_from(
    "aeoAqs\u0307\u0323\u0301\u0300\u0345\u0334\u093c\u0915\u0958\u0344\u0f71\u0f72\u0f73\u1100\u1161\u11a7\u11a8\uac00\uac01\u212b\u1e69\u09c7\u09be\U00011099\U000110ba\u3099\u304b"
)


@settings(max_examples=200, deadline=None)
@given(st.text(MARKS, max_size=24))
def test_normalization_of_marks(normalizing: Callable[[str], str], text: str) -> None:
    assert normalizing(text) == normalizers.NFC().normalize_str(text)


ADDED = (
    AddedToken("<think>", normalized=False, special=False),
    AddedToken("<thin", normalized=True, special=False),
    AddedToken("<", normalized=False, special=False),
    AddedToken("<end>", normalized=False, special=True),
    AddedToken("d>x", normalized=False, special=False),
    AddedToken("x\u00e9", normalized=True, special=False),
    AddedToken("y\u0301", normalized=False, special=False),
    AddedToken("\u00e9y", normalized=True, special=True),
)


@pytest.fixture(scope="module")
def added(trained: Library, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    library = Library.from_str(trained.to_str())
    library.normalizer = normalizers.NFC()
    library.add_tokens([token for token in ADDED if not token.special])
    library.add_special_tokens([token for token in ADDED if token.special])
    return both(library, tmp_path_factory.mktemp("added"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([token.content for token in ADDED] + [*"<end>xyé\u0301 think\ufdd0"]), max_size=12))
def test_added_tokens_that_overlap(added: tuple[Tokenizer, Tokenizer], parts: list[str]) -> None:
    text = "".join(parts)
    assert added[1].encode(text) == added[0].encode(text)


def test_added_tokens_that_look_around_themselves_are_not_packed(trained: Library) -> None:
    for change in ({"lstrip": True}, {"rstrip": True}, {"single_word": True}):
        library = Library.from_str(trained.to_str())
        library.add_tokens([AddedToken("<x>", normalized=False, **change)])
        assert pack_bpe(library.to_str(), list(map(library.id_to_token, range(library.get_vocab_size())))) is None


def test_letters_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    library = Library(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    library.pre_tokenizer = ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    one, other = both(library, tmp_path)
    for text in ("ab", "axb", "xa", "x", "abxab é"):
        assert other.encode(text) == one.encode(text)


def test_every_token_reads_the_same(qwen2: Tokenizer, qwen2_packed: Tokenizer) -> None:
    for token_id in range(qwen2.vocab_size + 3):
        assert qwen2_packed.token_bytes(token_id) == qwen2.token_bytes(token_id)
        assert qwen2_packed.text_bytes(token_id) == qwen2.text_bytes(token_id)


@pytest.fixture(scope="module")
def tables(trained: Library) -> tuple[dict[str, Any], bytes]:
    library = Library.from_str(trained.to_str())
    library.normalizer, library.pre_tokenizer = normalizers.NFC(), cut(O200K)
    found = pack_bpe(library.to_str(), list(map(library.id_to_token, range(library.get_vocab_size()))))
    assert found is not None
    return found


def test_tables_that_are_cut_off_are_refused(tables: tuple[dict[str, Any], bytes]) -> None:
    meta, sections = tables
    for cut in (0, 3, 1000, len(sections) // 2, len(sections) - 9):
        with pytest.raises((ValueError, TypeError)):
            PackedBpe(meta, memoryview(sections[:cut]))
    with pytest.raises(ValueError, match="not aligned"):
        PackedBpe(meta, memoryview(b"1234" + sections)[4:])
    for name, count in meta["counts"].items():
        for other in (count - 1, count + 1, -1, 1 << 40):
            with pytest.raises((ValueError, TypeError)):
                PackedBpe({**meta, "counts": {**meta["counts"], name: other}}, memoryview(sections))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_tables_do_no_harm(tables: tuple[dict[str, Any], bytes], data: st.DataObject) -> None:
    meta, sections = tables
    damaged = bytearray(sections)
    for at in data.draw(st.lists(st.integers(0, len(sections) // 4 - 1), min_size=1, max_size=8)):
        damaged[at * 4 : at * 4 + 4] = data.draw(st.sampled_from([b"\0\0\0\0", b"\xff" * 4, b"\1\0\0\0", b"\0\0\1\0"]))
    try:
        encoder = PackedBpe(meta, memoryview(bytes(damaged)))
    except ValueError:
        return
    for text in TEXTS:
        assert all(0 <= token_id < 1 << 32 for token_id in encoder.encode(text))


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
    assert pack_bpe(json.dumps({**plain, "pre_tokenizer": {"type": "Whitespace"}}), ["a", "b"]) is None
    assert pack_bpe(json.dumps({**plain, "normalizer": {"type": "NFKC"}}), ["a", "b"]) is None
    assert pack_bpe(json.dumps(plain), ["a", "hidden"]) is None
    token = {**whole["added_tokens"][0], "id": 3}
    assert pack_bpe(json.dumps({**plain, "added_tokens": [token]}), ["a", "b"]) is None
    assert pack_bpe(json.dumps({**plain, "added_tokens": [token, token]}), ["a", "b", None]) is None
    prefixed = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
    assert pack_bpe(json.dumps({**plain, "pre_tokenizer": prefixed}), ["a", "b"]) is None


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "a|", "a*", "a?b*", "a+?", "(a)", "^a", "a$", ".", r"\ba", r"\w+", "[[:alpha:]]", "[a&&b]", r"\p{Han}"),
        *("a{2}+", "a{3,2}", "a{0}", "(?i:'s)?a", "a+(?:'s|'t)", "(?:|'s)a", "(?i)a", "(?<=a)b", "(?!ab)c", "[a"),
        *(r"\p{^L}", "x" * 17, "a*b*c*d*e"),
    ],
)
def test_patterns_that_are_not_known(pattern: str) -> None:
    with pytest.raises(UnknownPatternError):
        parse(pattern)


def test_a_pattern_with_too_many_sets() -> None:
    cuts = read_cuts({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True})
    assert [one.alternatives for one in cuts] == [parse(GPT2)]
    letters = parse("|".join(chr(0x100 + code) for code in range(33)))
    with pytest.raises(UnknownPatternError):
        tables_of([cuts[0]._replace(alternatives=letters)])


def test_normal_tables_have_the_whole_of_unicode() -> None:
    tables = normal_tables()
    assert len(tables.decompositions) > 2000
    assert len(tables.compositions) > 900
    assert tables.combining[0x334] == 1
    assert tables.combining[0x345] == max(tables.combining.values()) > 50
    assert tables.combining[0x301] > tables.combining[0x323]
