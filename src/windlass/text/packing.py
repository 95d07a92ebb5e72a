"""A tokenizer as the tables of a ``PackedBpe``: tokens, pairs that merge, patterns, and what these ask of Unicode.

There are two kinds: byte-level BPE, which cuts text into words and has tokens for bytes, and BPE over characters, as
tokenizers made from SentencePiece's models are, which knows spaces as characters and merges across words.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any

from tokenizers import normalizers

from windlass.native.bpe import TABLES
from windlass.text.byte_decoding import byte_level_alphabet
from windlass.text.library_unicode import NO_NORMALIZATION, character_tables, normal_tables
from windlass.text.packed_bpe import padded
from windlass.text.sentencepiece_tokenizer import SentencePieceEncoder
from windlass.text.split_patterns import UnknownPatternError, read_cuts, tables_of
from windlass.text.tokenizer_config import DeclaredToken
from windlass.text.tokenizer_facts import BOUNDARY, NO_TEXT

_NO_ID = (1 << 32) - 1
_SPACE = "▁"
_REPLACE, _PREFIX_PARTS, _PREFIX_TEXT, _UNLESS = 1, 2, 4, 8
_ODD = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
_NO_CHARACTERS: dict[str, array[int] | bytes] = {
    "characters": array("I"),
    "character_ids": array("I"),
    "unknown": array("I", [_NO_ID]),
    "spaces": array("I", [0]),
}
_NO_UNICODE: dict[str, array[int] | bytes] = {
    "blocks": bytes(0x1100),
    "kinds": bytes(256),
    "sets": array("I", [0]),
    "combining": bytes(1),
    "normal": bytes(1),
    "decomposing": array("I"),
    "part_starts": array("I", [0]),
    "parts": array("I"),
    "compositions": array("Q"),
    "composed": array("I"),
    "steps": array("I"),
    "alternatives": array("I"),
    "patterns": array("I"),
}
"""Nothing is asked of characters."""


def pack_bpe(tokenizer_json: str, entries: Sequence[str | None]) -> tuple[dict[str, Any], bytes] | None:
    """Make the tables of a tokenizer, or None when it is of another kind than ``PackedBpe`` knows.

    Args:
        tokenizer_json: as the library writes it.
        entries: how the vocabulary writes each id.

    Returns:
        The meta and the sections of a ``PackedBpe``.
    """
    whole = json.loads(tokenizer_json)
    try:
        return _packed(*_tables(whole, entries))
    except UnknownPatternError:
        return None


def pack_sentencepiece(encoder: SentencePieceEncoder) -> tuple[dict[str, Any], bytes] | None:
    """As ``pack_bpe``, of a SentencePiece model that merges by scores and does nothing else to a text."""
    parts = encoder.plain_parts()
    if parts is None:
        return None
    spaces = 0
    if parts.replaces_spaces:
        spaces |= _REPLACE
    if parts.prefixes:
        spaces |= _PREFIX_PARTS if parts.prefixes_inside else _PREFIX_TEXT
    byte_ids = parts.byte_ids or [_NO_ID] * 256
    boundary = DeclaredToken(token_id=len(parts.entries), content=BOUNDARY, special=False)
    added = [token.to_json() for token in (*parts.added, boundary)]
    try:
        tables = {
            **_over_characters(parts.model, parts.entries, byte_ids, parts.unknown_id, {parts.unknown_id}),
            "spaces": array("I", [spaces]),
            **_added_tables(added, len(parts.entries), normalizes=False),
        }
    except UnknownPatternError:
        return None
    return _packed(tables, False)


def _packed(tables: Mapping[str, array[int] | bytes], normalizes: bool) -> tuple[dict[str, Any], bytes]:
    """The meta and the sections of a ``PackedBpe``."""
    counts = {name: len(tables[name]) for name in TABLES}
    parts = [memoryview(tables[name]).cast("B") for name in TABLES]
    sections = b"".join(bytes(part) + bytes(padded(part.nbytes) - part.nbytes) for part in parts)
    return {"counts": counts, "normalizes": normalizes}, sections


def _tables(whole: Mapping[str, Any], entries: Sequence[str | None]) -> tuple[dict[str, array[int] | bytes], bool]:
    """All tables of a tokenizer.json, and whether it brings text to form C."""
    if not _is_byte_level(whole.get("pre_tokenizer")):
        return _character_tables(whole, entries), False
    patterns = tables_of(read_cuts(whole.get("pre_tokenizer")))
    normalizes = _normalizes(whole.get("normalizer"))
    added = _added_tables(whole["added_tokens"], len(entries), normalizes=normalizes)
    vocab, model = whole["model"]["vocab"], whole["model"]
    odd = any(model.get(name) for name in (*_ODD, "unk_token", "fuse_unk", "byte_fallback"))
    if model.get("type") != "BPE" or odd:
        raise UnknownPatternError("another model")
    letters = {byte: vocab.get(letter, _NO_ID) for letter, byte in byte_level_alphabet().items()}
    normal = normal_tables() if normalizes else NO_NORMALIZATION
    characters = character_tables(patterns.charsets, normal)
    decomposing = sorted(normal.decompositions)
    parts = [normal.decompositions[code] for code in decomposing]
    pairs = sorted(normal.compositions)
    tables: dict[str, array[int] | bytes] = {
        **_NO_CHARACTERS,
        **_vocabulary_tables(model, entries),
        "letters": array("I", [letters[byte] for byte in range(256)]),
        **characters._asdict(),
        "decomposing": array("I", decomposing),
        "part_starts": _starts(parts),
        "parts": array("I", map(ord, "".join(parts))),
        "compositions": array("Q", [first << 32 | second for first, second in pairs]),
        "composed": array("I", [normal.compositions[pair] for pair in pairs]),
        "steps": array("I", patterns.steps),
        "alternatives": array("I", patterns.alternatives),
        "patterns": array("I", patterns.patterns),
        **added,
    }
    return tables, normalizes


def _is_byte_level(pre_tokenizer: object) -> bool:
    return isinstance(pre_tokenizer, Mapping) and (
        pre_tokenizer.get("type") == "ByteLevel" or any(map(_is_byte_level, pre_tokenizer.get("pretokenizers") or ()))
    )


def _character_tables(whole: Mapping[str, Any], entries: Sequence[str | None]) -> dict[str, array[int] | bytes]:
    """The tables of BPE over characters."""
    model: Mapping[str, Any] = whole["model"]
    vocab: Mapping[str, int] = model["vocab"]
    if model.get("type") != "BPE" or any(model.get(name) for name in (*_ODD, "ignore_merges")):
        raise UnknownPatternError("another model")
    byte_ids = [vocab.get(f"<0x{byte:02X}>", _NO_ID) for byte in range(256)]
    if not model.get("byte_fallback"):
        byte_ids = [_NO_ID] * 256
    if 0 < byte_ids.count(_NO_ID) < 256:
        raise UnknownPatternError("some bytes, but not all")
    unknown = model.get("unk_token")
    if unknown is not None and not model.get("fuse_unk") and _NO_ID in byte_ids:
        raise UnknownPatternError("an unknown token for each unknown character")
    added: list[Mapping[str, Any]] = whole["added_tokens"]
    if any(token["normalized"] for token in added):
        if any(token["normalized"] and not token["special"] for token in added):
            raise UnknownPatternError("an added token that is looked for after normalization")
        # Special tokens only keep others from being found within them.
        if any(token["content"] != BOUNDARY and not token["special"] for token in added):
            raise UnknownPatternError("added tokens that may overlap")
        added = [token for token in added if not token["normalized"]]
    specials = {token["id"] for token in whole["added_tokens"] if token["special"]}  # written as normalization does
    return {
        **_over_characters(model, entries, byte_ids, None if unknown is None else vocab[unknown], specials),
        "spaces": array("I", [_spaces(whole.get("normalizer"), whole.get("pre_tokenizer"))]),
        **_added_tables(added, len(entries), normalizes=False),
    }


def _over_characters(
    model: Mapping[str, Any],
    entries: Sequence[str | None],
    byte_ids: Sequence[int],
    unknown_id: int | None,
    renamed: Collection[int],
) -> dict[str, array[int] | bytes]:
    """The tables of a model whose words are made of characters, and of ``byte_ids`` for those that it does not know."""
    vocab: Mapping[str, int] = model["vocab"]
    codes = sorted(entry for entry in vocab if len(entry) == 1)
    return {
        **_vocabulary_tables(model, entries, renamed),
        "letters": array("I", byte_ids),
        "characters": array("I", map(ord, codes)),
        "character_ids": array("I", [vocab[code] for code in codes]),
        "unknown": array("I", [_NO_ID if unknown_id is None else unknown_id]),
        **_NO_UNICODE,
    }


def _spaces(normalizer: object, pre_tokenizer: object) -> int:
    """What becomes of spaces; the numbers of csrc/text/bpe_encoder.h.

    Raises:
        UnknownPatternError: more than that is done to a text.
    """
    spaces = 0
    for step in _steps(normalizer, "normalizers"):
        if step == {"type": "Prepend", "prepend": _SPACE}:
            spaces |= _PREFIX_PARTS
        elif step == {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}:
            spaces |= _REPLACE
        else:
            raise UnknownPatternError("another normalization")
    for step in _steps(pre_tokenizer, "pretokenizers"):
        kind = step.get("type")
        if kind == "Split" and step["pattern"] == {"String": " "} and not step["invert"] and spaces & _REPLACE:
            continue  # there are no spaces left
        if kind != "Metaspace" or step["replacement"] != _SPACE or step["split"] or spaces & (_PREFIX_TEXT | _UNLESS):
            raise UnknownPatternError("words are cut")
        scheme = {"always": _PREFIX_PARTS | _UNLESS, "first": _PREFIX_TEXT | _UNLESS, "never": 0}[
            step["prepend_scheme"]
        ]
        if spaces & _PREFIX_PARTS and scheme:
            raise UnknownPatternError("two spaces before a text")
        spaces |= _REPLACE | scheme
    return spaces


def _steps(step: object, name: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    if not isinstance(step, Mapping):
        raise UnknownPatternError("no steps")
    return [inner for part in step[name] for inner in _steps(part, name)] if step.get("type") == "Sequence" else [step]


def _starts(parts: Sequence[str] | Sequence[bytes]) -> array[int]:
    """Where each part begins, and the last one ends."""
    return array("I", accumulate(map(len, parts), initial=0))


def _vocabulary_tables(
    model: Mapping[str, Any], entries: Sequence[str | None], renamed: Collection[int] = ()
) -> dict[str, array[int] | bytes]:
    """The tables of entries and pairs; ``renamed`` are ids whose entries may be written otherwise in the vocabulary."""
    vocab: dict[str, int] = model["vocab"]
    if any(
        not entry
        or token_id >= len(entries)
        or (entries[token_id] != entry and token_id not in renamed and not entry.startswith(NO_TEXT))
        for entry, token_id in vocab.items()
    ):
        raise UnknownPatternError("an entry that is hidden by another")
    pairs: dict[int, int] = {}  # left id in the upper half -> rank in the upper half, what it becomes
    for rank, merge in enumerate(model["merges"]):
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        pairs[vocab[left] << 32 | vocab[right]] = rank << 32 | vocab[left + right]
    ordered = sorted(pairs)
    outcomes = [pairs[pair] for pair in ordered]
    counts = Counter(pair >> 32 for pair in ordered)
    written = [(entry or "").encode() for entry in entries]
    words = (token_id for entry, token_id in vocab.items() if not entry.startswith(NO_TEXT))
    whole_words = sorted(words, key=written.__getitem__) if model.get("ignore_merges") else []
    return {
        "pair_starts": array("I", accumulate((counts[left] for left in range(len(entries))), initial=0)),
        "pair_rights": array("I", [pair & _NO_ID for pair in ordered]),
        "pair_ranks": array("I", [outcome >> 32 for outcome in outcomes]),
        "pair_joined": array("I", [outcome & _NO_ID for outcome in outcomes]),
        "entry_starts": _starts(written),
        "entries": b"".join(written),
        "whole_words": array("I", whole_words),
    }


def _normalizes(normalizer: object) -> bool:
    """Whether text is brought to form C; any other normalization is unknown."""
    if normalizer is None:
        return False
    if isinstance(normalizer, Mapping) and normalizer.get("type") == "NFC":
        return True
    if isinstance(normalizer, Mapping) and normalizer.get("type") == "Sequence":
        return max(map(_normalizes, normalizer["normalizers"]), default=False)
    raise UnknownPatternError("another normalization")


def _added_tables(
    added: Sequence[Mapping[str, Any]], num_ids: int, *, normalizes: bool
) -> dict[str, array[int] | bytes]:
    """Special tokens are never looked for, but keep others from being found within them."""
    if any(not token["special"] and (token["single_word"] or token["lstrip"] or token["rstrip"]) for token in added):
        raise UnknownPatternError("an added token that looks around itself")
    texts = [
        normalizers.NFC().normalize_str(token["content"]) if normalizes and token["normalized"] else token["content"]
        for token in added
    ]
    if len(set(texts)) < len(texts) or not all(texts):
        raise UnknownPatternError("added tokens that are alike, or empty")
    if any(token["id"] > num_ids for token in added):
        raise UnknownPatternError("an added token far beyond the vocabulary")
    ids = [_NO_ID if token["special"] else token["id"] for token in added]
    written = [text.encode() for text in texts]
    return {
        "added": b"".join(written),
        "added_starts": _starts(written),
        "added_ids": array("I", ids),
        "added_normal": bytes(bool(token["normalized"]) for token in added),
    }
