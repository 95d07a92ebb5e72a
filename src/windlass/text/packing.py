"""A tokenizer as the tables of a ``PackedBpe``: tokens, pairs that merge, patterns, and what these ask of Unicode."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from tokenizers import normalizers

from windlass.native.bpe import TABLES
from windlass.text.byte_decoding import byte_level_alphabet
from windlass.text.library_unicode import NO_NORMALIZATION, character_tables, normal_tables
from windlass.text.packed_bpe import padded
from windlass.text.split_patterns import UnknownPatternError, read_cuts, tables_of
from windlass.text.tokenizer_facts import NO_TEXT

_NO_ID = (1 << 32) - 1


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
        tables, normalizes = _tables(whole, entries)
    except UnknownPatternError:
        return None
    counts = {name: len(tables[name]) for name in TABLES}
    parts = [memoryview(tables[name]).cast("B") for name in TABLES]
    sections = b"".join(bytes(part) + bytes(padded(part.nbytes) - part.nbytes) for part in parts)
    return {"counts": counts, "normalizes": normalizes}, sections


def _tables(whole: Mapping[str, Any], entries: Sequence[str | None]) -> tuple[dict[str, array[int] | bytes], bool]:
    """All tables of a tokenizer.json, and whether it brings text to form C."""
    patterns = tables_of(read_cuts(whole.get("pre_tokenizer")))
    normalizes = _normalizes(whole.get("normalizer"))
    added = _added_tables(whole["added_tokens"], len(entries), normalizes=normalizes)
    vocabulary = _vocabulary_tables(whole["model"], entries)
    normal = normal_tables() if normalizes else NO_NORMALIZATION
    characters = character_tables(patterns.charsets, normal)
    decomposing = sorted(normal.decompositions)
    parts = [normal.decompositions[code] for code in decomposing]
    pairs = sorted(normal.compositions)
    tables: dict[str, array[int] | bytes] = {
        **vocabulary,
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


def _starts(parts: Sequence[str] | Sequence[bytes]) -> array[int]:
    """Where each part begins, and the last one ends."""
    return array("I", accumulate(map(len, parts), initial=0))


def _vocabulary_tables(model: Mapping[str, Any], entries: Sequence[str | None]) -> dict[str, array[int] | bytes]:
    plain = not any(
        model.get(name)
        for name in (
            "dropout",
            "unk_token",
            "continuing_subword_prefix",
            "end_of_word_suffix",
            "fuse_unk",
            "byte_fallback",
        )
    )
    if model.get("type") != "BPE" or not plain:
        raise UnknownPatternError("another model")
    vocab: dict[str, int] = model["vocab"]
    if any(
        not entry or token_id >= len(entries) or (entries[token_id] != entry and not entry.startswith(NO_TEXT))
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
    letters = {byte: vocab.get(letter, _NO_ID) for letter, byte in byte_level_alphabet().items()}
    return {
        "letters": array("I", [letters[byte] for byte in range(256)]),
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
