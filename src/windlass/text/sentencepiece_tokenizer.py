"""SentencePiece (Kudo and Richardson, 2018) over a model of the ``tokenizers`` library.

Normalization, spaces, symbols that stay whole, bytes and unknown characters are done here as SentencePiece does them;
the library merges pairs, or finds the likeliest pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as _Library

from windlass.errors import LoadError
from windlass.text.byte_decoding import ByteDecoding
from windlass.text.charsmap import Charsmap
from windlass.text.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    parse_sentencepiece,
)
from windlass.text.tokenizer_config import DeclaredToken, declared_tokens, named_special_tokens, special_contents
from windlass.text.tokenizer_facts import BOUNDARY, SpecialToken, TokenizerFacts

SPACE = "▁"
"""What SentencePiece writes for a space."""

_ALL_SPACES = 1 << 30
_USER_DEFINED_SCORE = -0.1  # SentencePiece's own bonus, where scores are logarithms of probabilities


def merges_by_score(pieces: Mapping[str, float], ids: Mapping[str, int]) -> list[list[str]]:
    """The pairs that merge, the earliest first: pairs merge by the scores of what they become.

    Args:
        pieces: what pairs may become, with its score.
        ids: the ids of all that a pair may be made of.
    """
    merges = []
    for piece, score in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                merges.append((-score, ids[left], ids[right], left, right))
    merges.sort()
    return [[left, right] for *_, left, right in merges]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainParts:
    """A SentencePiece model of the simple kind: spaces are written as letters, pairs merge, and that is all.

    Attributes:
        model: as the ``model`` of a tokenizer.json.
        entries: how tokens are written, by their ids.
        byte_ids: the tokens of the 256 bytes, which stand for unknown characters; None without them.
        unknown_id: stands for them then.
        added: tokens that are found in the text before anything else; ``normalized`` ones, when spaces are written.
        replaces_spaces, prefixes, prefixes_inside: what becomes of spaces; a text gets one before it, each part too.
    """

    model: dict[str, Any]
    entries: Sequence[str | None]
    byte_ids: Sequence[int] | None
    unknown_id: int
    added: Sequence[DeclaredToken]
    replaces_spaces: bool
    prefixes: bool
    prefixes_inside: bool


class SentencePieceEncoder:
    """An ``Encoder``. Immutable after construction and safe to use from many threads.

    Args:
        model: the model file, with the types of pieces as they shall count.
        entries: how tokens are written, by their ids; None where there is none.
        added: tokens that are found in the text before anything else.
        prefix_inside: text behind ``BOUNDARY`` or an added token gets SentencePiece's leading space too.

    Raises:
        ValueError: the model file is damaged.
    """

    def __init__(
        self,
        model: SentencePieceModel,
        entries: Sequence[str | None],
        added: Iterable[DeclaredToken],
        *,
        prefix_inside: bool,
    ) -> None:
        self._entries = entries
        self._model = model
        self._prefix_inside = prefix_inside
        self._charsmap = Charsmap(model.precompiled_charsmap) if model.precompiled_charsmap else None
        self._added = {token.content: token for token in added}
        self._marks = _longest_first([BOUNDARY, *self._added])
        self._whole_ids = {model.pieces[token_id]: token_id for token_id in _of_type(model, USER_DEFINED)}
        self._whole = _longest_first(self._whole_ids)
        self._byte_ids = [0] * 256
        for token_id in _of_type(model, BYTE):
            self._byte_ids[int(model.pieces[token_id][3:5], 16)] = token_id
        self._unused = frozenset() if model.unigram else frozenset(_of_type(model, UNUSED))
        self._parts: dict[int, list[int]] = {}
        self._library = _Library.from_str(json.dumps(_bare(_unigram(model) if model.unigram else self._bpe())))

    def plain_parts(self) -> PlainParts | None:
        """What it is made of, if it is of the simple kind."""
        model = self._model
        odd = self._charsmap is not None or model.remove_extra_whitespaces or model.treat_whitespace_as_suffix
        if model.unigram or odd or self._unused:
            return None
        whole = [
            DeclaredToken(token_id=token_id, content=piece, special=False, normalized=True)
            for piece, token_id in self._whole_ids.items()
        ]
        return PlainParts(
            model=self._bpe(),
            entries=self._entries,
            byte_ids=self._byte_ids if model.byte_fallback else None,
            unknown_id=model.unk_id,
            added=(*self._added.values(), *whole),
            replaces_spaces=model.escape_whitespaces,
            prefixes=model.add_dummy_prefix,
            prefixes_inside=self._prefix_inside,
        )

    def entry(self, token_id: int) -> str | None:
        """See ``Encoder``."""
        return self._entries[token_id] if token_id < len(self._entries) else None

    def encode(self, text: str) -> list[int]:
        """See ``Encoder``."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TypeError("the text holds a lone surrogate") from None
        ids: list[int] = []
        start = 0
        for match in self._marks.finditer(text):
            token = self._added.get(match[0])
            before = text[start : match.start()]
            ids += self._encode_stretch(before.rstrip() if token and token.lstrip else before, first=start == 0)
            start = match.end()
            if token:
                ids.append(token.token_id)
                if token.rstrip:
                    start += len(text) - start - len(text[start:].lstrip())
        return ids + self._encode_stretch(text[start:], first=start == 0)

    def _encode_stretch(self, text: str, *, first: bool) -> list[int]:
        if not text:
            return []
        text = self._normalized(text, prefix=first or self._prefix_inside)
        if self._model.unigram or not self._whole_ids:
            return self._encode_pieces(text)
        ids: list[int] = []
        start = 0
        for match in self._whole.finditer(text):
            ids += self._encode_pieces(text[start : match.start()])
            ids.append(self._whole_ids[match[0]])
            start = match.end()
        return ids + self._encode_pieces(text[start:])

    def _normalized(self, text: str, *, prefix: bool) -> str:
        """As ``Normalizer::Normalize`` of SentencePiece."""
        model = self._model
        if self._charsmap is not None:
            text = self._apply_rules(self._charsmap, text)
        if model.remove_extra_whitespaces:
            if text and not text.strip(" "):
                return ""
            text = re.sub("  +", " ", text.lstrip(" "))
        space = SPACE if model.escape_whitespaces else " "
        added = space if prefix and model.add_dummy_prefix else ""
        body = text.replace(" ", space)
        if model.treat_whitespace_as_suffix:
            return (body.rstrip(space) if model.remove_extra_whitespaces else body) + added
        whole = added + body
        return whole.rstrip(space) if model.remove_extra_whitespaces else whole

    def _apply_rules(self, rules: Charsmap, text: str) -> str:
        """Symbols that stay whole are left as they are."""
        if not self._whole_ids:
            return rules.apply(text)
        parts: list[str] = []
        start = 0
        for match in self._whole.finditer(text):
            parts += (rules.apply(text[start : match.start()]), match[0])
            start = match.end()
        return "".join([*parts, rules.apply(text[start:])])

    def _encode_pieces(self, text: str) -> list[int]:
        if not text:
            return []
        encoding = self._library.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        model = self._model
        if model.byte_fallback and model.unk_id in ids:
            known = zip(ids, encoding.offsets, strict=True)
            ids = [
                new
                for token_id, (begin, end) in known
                for new in (self._unknown(text[begin:end]) if token_id == model.unk_id else (token_id,))
            ]
        if self._unused and not self._unused.isdisjoint(ids):
            ids = [new for token_id in ids for new in self._used(token_id)]
        return ids

    def _used(self, token_id: int) -> Sequence[int]:
        """What stands for a piece: itself, if it is used."""
        if token_id not in self._unused:
            return (token_id,)
        found = self._parts.get(token_id)
        if found is None:
            model = self._model
            ids = {model.pieces[one]: one for one in _of_type(model, NORMAL, UNUSED)}
            scores = {piece: model.scores[one] for piece, one in ids.items()}
            parts = _taken_apart(model.pieces[token_id], scores, {model.pieces[one] for one in self._unused})
            found = [new for part in parts for new in ([ids[part]] if part in ids else self._unknown(part))]
            self._parts[token_id] = found
        return found

    def _unknown(self, text: str) -> list[int]:
        """The ids of characters that are no pieces."""
        return [self._byte_ids[byte] for byte in text.encode()] if self._model.byte_fallback else [self._model.unk_id]

    def _bpe(self) -> dict[str, Any]:
        """The library's ``model``; unused pieces are merged too, and taken apart afterwards."""
        model = self._model
        ids = {model.pieces[token_id]: token_id for token_id in _of_type(model, NORMAL, UNUSED)}
        unknown = BOUNDARY  # a name that no text has
        return {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "vocab": {**ids, unknown: model.unk_id},
            "merges": merges_by_score({piece: model.scores[token_id] for piece, token_id in ids.items()}, ids),
        }


def _of_type(model: SentencePieceModel, *types: int) -> list[int]:
    """The ids of the pieces of some types."""
    return [token_id for token_id, kind in enumerate(model.types) if kind in types]


def _taken_apart(piece: str, scores: Mapping[str, float], unused: Collection[str]) -> list[str]:
    """What stands for an unused piece: those that it was merged from, as far as they are used."""
    symbols = list(piece)
    made: dict[str, tuple[str, str]] = {}
    while len(symbols) > 1:
        pairs = [(left + right, at) for at, (left, right) in enumerate(pairwise(symbols))]
        known = [(-scores[pair], at) for pair, at in pairs if pair in scores]
        if not known:
            return [piece]  # it never comes about
        _, at = min(known)
        made[symbols[at] + symbols[at + 1]] = (symbols[at], symbols[at + 1])
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    parts = [piece]
    while any(part in unused and part in made for part in parts):
        parts = [half for part in parts for half in (made[part] if part in unused and part in made else (part,))]
    return parts


def _unigram(model: SentencePieceModel) -> dict[str, Any]:
    """The library's ``model``; pieces that no text may become have names that no text has."""
    scores = {NORMAL: None, USER_DEFINED: _USER_DEFINED_SCORE}
    vocab: list[tuple[str, float]] = []
    for piece, kind, score in zip(model.pieces, model.types, model.scores, strict=True):
        if kind in scores:
            own = scores[kind]
            vocab.append((piece, score if own is None else own))
        else:
            vocab.append((f"{BOUNDARY}{len(vocab)}", 0.0))
    return {"type": "Unigram", "unk_id": model.unk_id, "vocab": vocab, "byte_fallback": False}


def _bare(model: dict[str, Any]) -> dict[str, Any]:
    return {"version": "1.0", "added_tokens": [], "model": model}


def _longest_first(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of ``texts`` at the leftmost place, and nothing when there are none."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) if ordered else r"(?!)")


def read_sentencepiece(
    path: Path, data: bytes, config: Mapping[str, Any]
) -> tuple[SentencePieceEncoder, TokenizerFacts, Path]:
    """Make a tokenizer of a SentencePiece model.

    Args:
        path: the model file; tokens may be declared in the files beside it.
        data: its content.
        config: tokenizer_config.json.

    Returns:
        The encoder, what is to be known of it, and ``path``.

    Raises:
        LoadError: a file is broken, or says what is not supported.
    """
    model = parse_sentencepiece(data, path)
    if config.get("add_prefix_space") is False:
        model = replace(model, add_dummy_prefix=False)
    declared = declared_tokens(path.parent, config)
    entries: list[str | None] = list(model.pieces)
    entries += [None] * (max((token.token_id for token in declared), default=-1) + 1 - len(entries))
    by_text = {piece: token_id for token_id, piece in enumerate(model.pieces)}
    for token in declared:
        if (known := by_text.get(token.content, token.token_id)) != token.token_id:
            reason = f"token {token.content!r} has id {token.token_id}, but {path.name} gives it {known}"
            raise LoadError(path.parent / "tokenizer_config.json", reason)
        if token.token_id < len(model.types) and entries[token.token_id] != token.content:
            model.types[token.token_id] = CONTROL  # its place is taken
        entries[token.token_id] = token.content
    by_text |= {token.content: token.token_id for token in declared}
    for content in special_contents(config):
        if (number := by_text.get(content, len(model.types))) < len(model.types) and model.types[number] != UNKNOWN:
            model.types[number] = CONTROL
    facts = _facts(model, entries, by_text, declared, config)
    plain = [
        token
        for token in declared
        if token.content not in facts.specials and model.types[token.token_id : token.token_id + 1] != [USER_DEFINED]
    ]
    try:
        encoder = SentencePieceEncoder(model, entries, plain, prefix_inside=config.get("legacy") is not False)
    except ValueError as error:
        raise LoadError(path, f"is not a SentencePiece model that can be read: {error}") from None
    return encoder, facts, path


def _facts(
    model: SentencePieceModel,
    entries: Sequence[str | None],
    by_text: Mapping[str, int],
    declared: Iterable[DeclaredToken],
    config: Mapping[str, Any],
) -> TokenizerFacts:
    specials = {
        entry: SpecialToken(token_id, lstrip=False, rstrip=False)
        for token_id, (entry, kind) in enumerate(zip(entries, model.types, strict=False))
        if entry and kind in (CONTROL, UNKNOWN)
    }
    named_special = set(special_contents(config))
    for token in declared:
        if token.special or token.content in named_special:
            specials[token.content] = SpecialToken(token.token_id, token.lstrip, token.rstrip)
    own_ids = {
        "bos_token": model.bos_id,
        "eos_token": model.eos_id,
        "unk_token": model.unk_id,
        "pad_token": model.pad_id,
    }
    own = {name: entry for name, number in own_ids.items() if number is not None and (entry := entries[number])}
    named = {**own, **named_special_tokens(config)}
    bos, eos = named.get("bos_token"), named.get("eos_token")
    bos_id = by_text.get(bos) if isinstance(bos, str) else None
    return TokenizerFacts(
        vocab_size=len(entries),
        added_ids={
            **{text: one.token_id for text, one in specials.items()},
            **{t.content: t.token_id for t in declared},
        },
        specials=specials,
        special_tokens=named,
        boundary_id=len(entries),
        bos_id=bos_id,
        eos_id=by_text.get(eos) if isinstance(eos, str) else None,
        bos_prefix=(bos_id,) if bos_id is not None and config.get("add_bos_token") is not False else (),
        decoding=ByteDecoding(
            byte_fallback=model.byte_fallback,
            replacements=((SPACE, " "),),
            strip_spaces=_ALL_SPACES if model.remove_extra_whitespaces else int(model.add_dummy_prefix),
        ),
    )
