"""Byte-level BPE (Sennrich et al., 2016) from tables that are used as they lie in memory.

Reading a vocabulary of 150,000 tokens from JSON takes half a second, most of a start. Here it is done once, and what
the native core encodes with is put down as it will be used: tokens, pairs that merge, the patterns that cut text into
words, and what these ask of Unicode.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from windlass.native.bpe import TABLES, BpeEncoder
from windlass.text.byte_decoding import byte_level_alphabet
from windlass.text.split_patterns import UnknownPatternError, read_cuts, tables_of

_NO_ID = (1 << 32) - 1
_ALIGNMENT = 8


class PackedBpe:
    """An ``Encoder`` over the tables that ``pack_bpe`` makes, which it borrows: the ids are those of the library."""

    def __init__(self, meta: Mapping[str, Any], sections: memoryview) -> None:
        """Use tables that nobody vouches for.

        Args:
            meta: the number of items of each table, ``counts``, and whether text is brought to form C, ``normalizes``.
            sections: the tables one after the other, in the order of ``windlass.native.bpe.TABLES`` and each padded to
                8 bytes, at an address that is a multiple of 8.

        Raises:
            KeyError, TypeError, ValueError: these are no such tables.
        """
        tables: dict[str, memoryview[Any]] = {}
        at = 0
        for name, code in TABLES.items():
            size = meta["counts"][name] * array(code).itemsize
            tables[name] = sections[at : at + size].cast(code)  # type: ignore[call-overload]
            if tables[name].nbytes != size:
                raise ValueError("the tables are cut off")
            at += _padded(size)
        self._core = BpeEncoder(tables, normalizes=bool(meta["normalizes"]))
        self._starts, self._entries = tables["entry_starts"], tables["entries"]

    def entry(self, token_id: int) -> str | None:
        """See ``Encoder``."""
        if token_id >= len(self._starts) - 1:
            return None
        return str(self._entries[self._starts[token_id] : self._starts[token_id + 1]], "utf-8") or None

    def encode(self, text: str) -> list[int]:
        """See ``Encoder``."""
        return self._core.encode(text)


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
    padded = b"".join(bytes(part) + bytes(_padded(part.nbytes) - part.nbytes) for part in parts)
    return {"counts": counts, "normalizes": normalizes}, padded


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _tables(whole: Mapping[str, Any], entries: Sequence[str | None]) -> tuple[dict[str, array[int] | bytes], bool]:
    """All tables of a tokenizer.json, and whether it brings text to form C."""
    # The library takes 30 ms to import.
    from windlass.text.library_unicode import NO_NORMALIZATION, character_tables, normal_tables

    vocabulary = _vocabulary_tables(whole["model"], entries)
    normalizes = _normalizes(whole.get("normalizer"))
    added = _added_tables(whole["added_tokens"], normalizes=normalizes)
    patterns = tables_of(read_cuts(whole.get("pre_tokenizer")))
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
    if any(not entry or token_id >= len(entries) or entries[token_id] != entry for entry, token_id in vocab.items()):
        raise UnknownPatternError("an entry that is hidden by another")
    pairs: dict[int, int] = {}  # left id in the upper half -> rank in the upper half, what it becomes
    for rank, merge in enumerate(model["merges"]):
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        pairs[vocab[left] << 32 | vocab[right]] = rank << 32 | vocab[left + right]
    ordered = sorted(pairs)
    outcomes = [pairs[pair] for pair in ordered]
    counts = Counter(pair >> 32 for pair in ordered)
    written = [(entry or "").encode() for entry in entries]
    whole_words = sorted(vocab.values(), key=written.__getitem__) if model.get("ignore_merges") else []
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


def _added_tables(added: Sequence[Mapping[str, Any]], *, normalizes: bool) -> dict[str, array[int] | bytes]:
    """Special tokens are never looked for, but keep others from being found within them."""
    from tokenizers import normalizers

    if any(not token["special"] and (token["single_word"] or token["lstrip"] or token["rstrip"]) for token in added):
        raise UnknownPatternError("an added token that looks around itself")
    texts = [
        normalizers.NFC().normalize_str(token["content"]) if normalizes and token["normalized"] else token["content"]
        for token in added
    ]
    if len(set(texts)) < len(texts) or not all(texts):
        raise UnknownPatternError("added tokens that are alike, or empty")
    ids = [_NO_ID if token["special"] else token["id"] for token in added]
    written = [text.encode() for text in texts]
    return {
        "added": b"".join(written),
        "added_starts": _starts(written),
        "added_ids": array("I", ids),
        "added_normal": bytes(bool(token["normalized"]) for token in added),
    }
