"""Byte-level BPE (Sennrich et al., 2016) from sorted tables that are used as they lie in memory.

Reading a vocabulary of 150,000 tokens from JSON takes half a second, most of a start. Here only the cutting into words
is left to the ``tokenizers`` library, which gets a tokenizer without merges for it; words become tokens by binary
search in arrays.
"""

from __future__ import annotations

import heapq
import json
import threading
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from windlass.text.byte_decoding import byte_level_alphabet
from windlass.text.tokenizer_facts import BOUNDARY

if TYPE_CHECKING:
    from windlass.text.library_tokenizer import Splitter

_MOST_CACHED = 1 << 14
_LONGEST_CACHED = 32
_NO_RANK = (1 << 32) - 1


class PackedBpe:
    """The tables of one vocabulary, and an ``Encoder`` over them: the ids are those of the library.

    ``sections`` are arrays of native integers and then bytes: the pairs that merge, left id in the upper half (64 bits,
    ascending); where the entry of each id begins, and the last one ends (32 bits); the ids of the model's own tokens in
    the order of their entries (32 bits); the pairs' ranks, and what they become (32 bits each); the entries in UTF-8.
    ``meta`` has the counts, the JSON of the ``Splitter``, and whether a word that is a token is not taken apart.
    """

    def __init__(self, meta: Mapping[str, Any], sections: memoryview) -> None:
        """Use tables that ``pack_bpe`` made; they are borrowed.

        Raises:
            KeyError, TypeError, ValueError: these are no such tables.
        """
        self._splitter_json: str = meta["splitter"]
        self._whole_words: bool = meta["whole_words"]
        num_ids, num_own, num_pairs = meta["num_ids"], meta["num_own"], meta["num_pairs"]
        at = 0

        def take(count: int, code: Literal["I", "Q"]) -> memoryview[int]:
            nonlocal at
            size = count * array(code).itemsize
            part = sections[at : at + size].cast(code)
            if len(part) != count:
                raise ValueError("the tables are cut off")
            at += size
            return part

        self._pairs = take(num_pairs, "Q")
        self._starts = take(num_ids + 1, "I")
        self._own = take(num_own, "I")
        self._ranks = take(num_pairs, "I")
        self._merged = take(num_pairs, "I")
        self._blob = sections[at:]
        if self._starts[num_ids] != len(self._blob):
            raise ValueError("the tables are cut off")
        self._num_ids = num_ids
        self._lock = threading.Lock()
        self._splitter: Splitter | None = None
        self._words: dict[tuple[int, ...], list[int]] = {}

    def entry(self, token_id: int) -> str | None:
        """See ``Encoder``."""
        return str(self._entry_bytes(token_id), "utf-8") or None if token_id < self._num_ids else None

    def encode(self, text: str) -> list[int]:
        """See ``Encoder``."""
        splitter = self._splitter
        if splitter is None:
            splitter = self._make_splitter()
        ids, words = splitter.split(text)
        out: list[int] = []
        start = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or words[end] != words[start]:
                out += self._word(tuple(ids[start:end]))
                start = end
        return out

    def _make_splitter(self) -> Splitter:
        from windlass.text.library_tokenizer import Splitter  # the library takes 30 ms to import

        with self._lock:
            if self._splitter is None:
                self._splitter = Splitter(self._splitter_json)
            return self._splitter

    def _word(self, ids: tuple[int, ...]) -> list[int]:
        if len(ids) == 1:
            return list(ids)
        known = self._words.get(ids)
        if known is None:
            whole = self._whole(ids) if self._whole_words else None
            known = self._merge(list(ids)) if whole is None else [whole]
            if len(ids) <= _LONGEST_CACHED:
                if len(self._words) >= _MOST_CACHED:
                    self._words.clear()
                self._words[ids] = known
        return known

    def _whole(self, ids: tuple[int, ...]) -> int | None:
        """The token that is the word as it stands, if there is one."""
        word = b"".join(map(self._entry_bytes, ids))
        at = bisect_left(self._own, word, key=self._entry_bytes)
        return self._own[at] if at < len(self._own) and self._entry_bytes(self._own[at]) == word else None

    def _merge(self, ids: list[int]) -> list[int]:
        """Join the pair of the lowest rank, the leftmost of its kind, until no pair is left."""
        count = len(ids)
        following = list(range(1, count + 1))
        before = list(range(-1, count - 1))
        waiting: list[tuple[int, int, int, int]] = []

        def consider(left: int) -> None:
            right = following[left]
            if right < count:
                rank, merged = self._find(ids[left], ids[right])
                if rank != _NO_RANK:
                    heapq.heappush(waiting, (rank, left, right, merged))

        for left in range(count - 1):
            consider(left)
        while waiting:
            rank, left, right, merged = heapq.heappop(waiting)
            if following[left] != right or self._find(ids[left], ids[right])[0] != rank:
                continue  # one of the two was joined to another meanwhile
            ids[left] = merged
            ids[right] = -1
            following[left] = following[right]
            following[right] = -1
            if following[left] < count:
                before[following[left]] = left
                consider(left)
            if before[left] >= 0:
                consider(before[left])
        return [token_id for token_id in ids if token_id >= 0]

    def _find(self, left: int, right: int) -> tuple[int, int]:
        """The rank of a pair and what it becomes."""
        if left < 0 or right < 0:
            return _NO_RANK, 0
        pair = left << 32 | right
        at = bisect_left(self._pairs, pair)
        if at < len(self._pairs) and self._pairs[at] == pair:
            return self._ranks[at], self._merged[at]
        return _NO_RANK, 0

    def _entry_bytes(self, token_id: int) -> bytes:
        return bytes(self._blob[self._starts[token_id] : self._starts[token_id + 1]])


def pack_bpe(tokenizer_json: str, entries: list[str | None]) -> tuple[dict[str, Any], bytes] | None:
    """Make the tables of a tokenizer, or None when it is of another kind than ``PackedBpe`` knows.

    Args:
        tokenizer_json: as the library writes it.
        entries: how the vocabulary writes each id.

    Returns:
        The meta and the sections of a ``PackedBpe``.
    """
    whole = json.loads(tokenizer_json)
    model = whole["model"]
    plain = not any(
        model.get(name) for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    ) and not any(model.get(name) for name in ("fuse_unk", "byte_fallback"))
    if model.get("type") != "BPE" or not plain or not _is_byte_level(whole.get("pre_tokenizer")):
        return None
    vocab: dict[str, int] = model["vocab"]
    added = {token["content"]: token["id"] for token in whole["added_tokens"]}
    alphabet = byte_level_alphabet()
    if any(len(content) == 1 and content != BOUNDARY and content not in vocab for content in added):
        return None  # among the letters it would be taken for one
    if any(not entry for entry in vocab) or any(
        vocab.get(content, token_id) != token_id for content, token_id in added.items()
    ):
        return None
    letters = {entry: token_id for entry, token_id in vocab.items() if len(entry) == 1 and entry in alphabet}
    splitter = {
        **whole,
        "model": {**model, "vocab": {**letters, **added}, "merges": [], "ignore_merges": False},
    }
    pairs: dict[int, tuple[int, int]] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        pairs[vocab[left] << 32 | vocab[right]] = (rank, vocab[left + right])
    encoded = [(entry or "").encode() for entry in entries]
    starts = array("I", [0])
    for entry_bytes in encoded:
        starts.append(starts[-1] + len(entry_bytes))
    own = sorted((token_id for token_id in vocab.values() if token_id < len(encoded)), key=encoded.__getitem__)
    ordered = sorted(pairs)
    sections = (
        array("Q", ordered),
        starts,
        array("I", own),
        array("I", [pairs[pair][0] for pair in ordered]),
        array("I", [pairs[pair][1] for pair in ordered]),
    )
    meta = {
        "splitter": json.dumps(splitter, ensure_ascii=False),
        "whole_words": bool(model.get("ignore_merges")),
        "num_ids": len(entries),
        "num_own": len(own),
        "num_pairs": len(ordered),
    }
    return meta, b"".join([*(section.tobytes() for section in sections), *encoded])


def _is_byte_level(step: object) -> bool:
    """Whether a pre-tokenizer ends in writing bytes in GPT-2's alphabet."""
    if not isinstance(step, dict):
        return False
    if step.get("type") == "Sequence":
        steps = step.get("pretokenizers") or [None]
        return _is_byte_level(steps[-1])
    return step.get("type") == "ByteLevel"
