"""Tokenizers from the metadata of GGUF files: SentencePiece with scores ("llama"), byte-level BPE ("gpt2"), BERT's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from windlass.errors import LoadError
from windlass.text.byte_ranks import GPT_4O, LLAMA_3, QWEN_2, TEKKEN
from windlass.text.gguf_token_ids import read_token_id
from windlass.text.library_tokenizer import LibraryEncoder, read_library_json
from windlass.text.sentencepiece_model import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from windlass.text.sentencepiece_tokenizer import merges_by_score
from windlass.text.split_patterns import GPT2
from windlass.text.tokenizer_config import MAX_TOKENS
from windlass.text.tokenizer_facts import TokenizerFacts
from windlass.text.vocab_files import between_tokens, word_piece_parts

_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
}
_BERT = {"bos_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}

_DEEPSEEK_3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_QWEN_3_5 = QWEN_2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")

_SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"), (r"\p{N}", GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), (LLAMA_3,)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (LLAMA_3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), (QWEN_2,)),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), (GPT_4O,)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), _DEEPSEEK_3),
    "qwen35": (_QWEN_3_5,),
    "tekken": (TEKKEN,),
}
"""``tokenizer.ggml.pre``, and the patterns that cut a text into words, each applied to what the one before left."""

_LIKE_LLAMA_3 = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken")
"""Words that are tokens are not merged, and BOS comes first, unless the file says otherwise."""


def read_gguf_tokenizer(path: Path, metadata: Mapping[str, Any]) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    """Return the encoder, what is to be known of it, and ``path``.

    Raises:
        LoadError: the file has no tokenizer, one of a kind that is not supported, or a broken one.
    """
    tokenizer, config = gguf_tokenizer_files(path, metadata)
    return read_library_json(json.dumps(tokenizer), path, config)


def gguf_tokenizer_files(path: Path, metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tokenizer.json and the tokenizer_config.json that say the same.

    Raises:
        LoadError: as ``read_gguf_tokenizer``.
    """
    reader = _Reader(path, metadata)
    kind = reader.value("model", str)
    if kind not in _KINDS:
        supported = ", ".join(f"{name!r} ({title})" for name, (title, _) in _KINDS.items())
        raise reader.error("model", f"is {kind!r}; supported: {supported}")
    tokenizer = _KINDS[kind][1](reader)
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    texts = list(vocab)
    named = {name: texts[token_id] for name, token_id in _named_ids(reader, kind, vocab).items()}
    adds_bos = reader.value("add_bos_token", bool, _adds_bos(reader, kind))
    tokenizer["post_processor"] = _around(reader, kind, named, vocab, adds_bos=adds_bos)
    return tokenizer, {"add_bos_token": adds_bos, **named}


def _adds_bos(reader: _Reader, kind: str) -> bool:
    return kind in ("llama", "bert") or reader.value("pre", str, "gpt-2") in _LIKE_LLAMA_3


def _named_ids(reader: _Reader, kind: str, vocab: Mapping[str, int]) -> dict[str, int]:
    """The ids of named tokens; those of BERT, which files often leave out, by its names for them."""
    ids = {name: reader.token_id(key) for name, key in _NAMED.items()}
    if kind == "bert":
        old = reader.token_id("cls_token_id")
        ids["bos_token"] = ids["bos_token"] if old is None else old
        ids = {name: vocab.get(_BERT.get(name, "")) if found is None else found for name, found in ids.items()}
    return {name: token_id for name, token_id in ids.items() if token_id is not None}


def _around(
    reader: _Reader, kind: str, named: Mapping[str, str], vocab: Mapping[str, int], *, adds_bos: bool
) -> dict[str, Any] | None:
    """What puts BOS before a whole text, and EOS, or BERT's separator, behind it, where the file asks for it."""
    behind, key, default = (
        ("sep_token", "add_sep_token", True) if kind == "bert" else ("eos_token", "add_eos_token", False)
    )
    adds_behind = reader.value(key, bool, default)
    first = named.get("bos_token") if adds_bos else None
    last = named.get(behind) if adds_behind else None
    return None if first is None and last is None else between_tokens(first, last, vocab)


class _Reader:
    """The keys that begin with ``tokenizer.ggml.``, checked."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path = path
        self._metadata = metadata
        tokens = self.value("tokens", list)
        if not 0 < len(tokens) <= MAX_TOKENS or not all(isinstance(token, str) for token in tokens):
            raise self.error("tokens", f"must be 1 to {MAX_TOKENS} strings")
        self.tokens = _distinct(tokens)

    def value(self, key: str, kind: type, default: Any = None) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if value is None:
            raise self.error(key, "is missing")
        if type(value) is not kind:
            raise self.error(key, f"is of the wrong type, {type(value).__name__}")
        return value

    def numbers(self, key: str, kind: type, default: Any) -> list[Any]:
        """A list with a number for each token."""
        values: list[Any] = self.value(key, list, [default] * len(self.tokens))
        if len(values) != len(self.tokens) or not all(type(value) is kind for value in values):
            raise self.error(key, f"must have one {kind.__name__} for each of {len(self.tokens)} tokens")
        if kind is float and not all(map(math.isfinite, values)):
            raise self.error(key, "has a number that is not finite")
        return values

    def token_id(self, key: str) -> int | None:
        return read_token_id(self._path, self._metadata, key, len(self.tokens))

    def unknown(self) -> str | None:
        token_id = self.token_id("unknown_token_id")
        return None if token_id is None else self.tokens[token_id]

    def error(self, key: str, reason: str) -> LoadError:
        return LoadError(self._path, f"tokenizer.ggml.{key} {reason}")


def _distinct(tokens: list[str]) -> list[str]:
    """Give entries that occur twice, as fillers do, a name that no text has."""
    seen: set[str] = set()
    result = []
    for number, token in enumerate(tokens):
        name = token if token not in seen else f"{token}\ufdd2{number}"
        seen.add(name)
        result.append(name)
    return result


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "id": token_id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind in (CONTROL, UNKNOWN),
        }
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED) and token
    ]


def _sentence_piece(reader: _Reader) -> dict[str, Any]:
    """SentencePiece's merging by scores as BPE with byte fallback: pairs merge by the scores of their results."""
    tokens = reader.tokens
    types = reader.numbers("token_type", int, NORMAL)
    scores = reader.numbers("scores", float, 0.0)
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    merging = {
        token: score
        for token, kind, score in zip(tokens, types, scores, strict=True)
        if kind in (NORMAL, USER_DEFINED, UNUSED)
    }
    normalizers: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    prefix = reader.value("add_space_prefix", bool, True)
    if prefix:
        normalizers.insert(0, {"type": "Prepend", "prepend": "▁"})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "added_tokens": _added_tokens(tokens, types),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": reader.unknown(),
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges_by_score(merging, vocab),
        },
    }


def _byte_level(reader: _Reader) -> dict[str, Any]:
    """GPT-2's byte-level BPE, with the way of cutting words that ``tokenizer.ggml.pre`` names."""
    tokens = reader.tokens
    types = reader.numbers("token_type", int, NORMAL)
    merges = reader.value("merges", list)
    if not all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges):
        raise reader.error("merges", "must be strings of two entries with a space between them")
    name = reader.value("pre", str, "gpt-2")
    if name not in _SPLITS:
        raise reader.error("pre", f"is {name!r}, which is not supported; supported: {', '.join(_SPLITS)}")
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in _SPLITS[name]
    ]
    return {
        "version": "1.0",
        "added_tokens": _added_tokens(tokens, types),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                *splits,
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in merges],
            "ignore_merges": name in _LIKE_LLAMA_3,
        },
    }


def _word_piece(reader: _Reader) -> dict[str, Any]:
    """BERT's WordPiece, whose pieces have a space before them at the beginning of a word, and no ``##`` elsewhere.

    Most files do not say whether the model knows capitals: the vocabulary of one that does has A as a word.
    """
    types = reader.numbers("token_type", int, NORMAL)
    unknown = reader.unknown() or "[UNK]"
    if unknown not in reader.tokens:
        raise reader.error("unknown_token_id", "is missing")
    pieces: list[str] = []
    for token, kind in zip(reader.tokens, types, strict=True):
        whole = kind in (CONTROL, UNKNOWN) or token == unknown
        pieces.append(token if whole else token[1:] if token.startswith(_SPACE) else f"##{token}")
    pieces = _distinct(pieces)
    lowercase = reader.value("normalizer.lowercase", bool, f"{_SPACE}A" not in reader.tokens)
    strip_accents = reader.value("normalizer.strip_accents", bool, lowercase)
    model, parts = word_piece_parts(unknown, lowercase=lowercase, strip_accents=strip_accents)
    return {
        "version": "1.0",
        "added_tokens": _added_tokens(pieces, types),
        **parts,
        "model": {**model, "vocab": {piece: token_id for token_id, piece in enumerate(pieces)}},
    }


_SPACE = "\u2581"

_KINDS: dict[str, tuple[str, Callable[[_Reader], dict[str, Any]]]] = {
    "llama": ("SentencePiece with scores", _sentence_piece),
    "gpt2": ("BPE", _byte_level),
    "bert": ("WordPiece", _word_piece),
}
"""``tokenizer.ggml.model``."""
