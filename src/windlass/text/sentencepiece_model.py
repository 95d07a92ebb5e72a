"""SentencePiece's model files (``tokenizer.model``): a message in Protocol Buffers' wire format, read strictly.

Field numbers are those of ``sentencepiece_model.proto`` (google/sentencepiece); the encoding is that of Protocol
Buffers' documentation. Every length is checked against the bytes that are there before it is used.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from windlass.errors import LoadError
from windlass.text.tokenizer_config import MAX_TOKEN_LENGTH, MAX_TOKENS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces, in SentencePiece's files as in GGUF's ``tokenizer.ggml.token_type``."""

_UNIGRAM, _BPE = 1, 2
_MOST_USER_DEFINED = 1 << 15
_FLOAT = struct.Struct("<f")

# Of the message: field number -> name.
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_TRAINER_FIELDS = {
    3: "model_type",
    24: "treat_whitespace_as_suffix",
    35: "byte_fallback",
    41: "bos_id",
    42: "eos_id",
    43: "pad_id",
}
_NORMALIZER_FIELDS = {
    2: "precompiled_charsmap",
    3: "add_dummy_prefix",
    4: "remove_extra_whitespaces",
    5: "escape_whitespaces",
}
_DEFAULTS: dict[str, Any] = {
    "model_type": _UNIGRAM,
    "treat_whitespace_as_suffix": 0,
    "byte_fallback": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "precompiled_charsmap": b"",
    "add_dummy_prefix": 1,
    "remove_extra_whitespaces": 1,
    "escape_whitespaces": 1,
}

_FLAGS = (
    "byte_fallback",
    "treat_whitespace_as_suffix",
    "add_dummy_prefix",
    "remove_extra_whitespaces",
    "escape_whitespaces",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """What a model file says; the attributes are named as in ``sentencepiece_model.proto``.

    Attributes:
        pieces, scores, types: of each token, by its id; a type is one of those above.
        unigram: a unigram language model; else byte pair encoding.
        unk_id: the one piece of type ``UNKNOWN``.
        bos_id, eos_id, pad_id: None where there is none.
    """

    pieces: list[str]
    scores: list[float]
    types: list[int]
    unigram: bool
    unk_id: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    byte_fallback: bool
    treat_whitespace_as_suffix: bool
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def parse_sentencepiece(data: bytes, path: Path) -> SentencePieceModel:
    """Read a model.

    Args:
        data: the whole file.
        path: the file, for the error.

    Raises:
        LoadError: it is damaged, or of a kind that is not supported.
    """
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    values = dict(_DEFAULTS)
    try:
        for number, value in _fields(data):
            if number == _PIECES:
                piece, score, kind = _read_piece(_message(value))
                pieces.append(piece)
                scores.append(score)
                types.append(kind)
                if len(pieces) > MAX_TOKENS:
                    raise ValueError(f"it has more than {MAX_TOKENS} pieces")
            elif number in (_TRAINER, _NORMALIZER):
                names = _TRAINER_FIELDS if number == _TRAINER else _NORMALIZER_FIELDS
                for field, inner in _fields(_message(value)):
                    if field in names:
                        values[names[field]] = _typed(names[field], inner)
            elif number == _DENORMALIZER and any(field == 2 and inner for field, inner in _fields(_message(value))):
                raise ValueError("it has rules for decoded text (denormalizer_spec), which are not supported")
        return _checked(pieces, scores, types, values)
    except ValueError as error:
        raise LoadError(path, f"is not a SentencePiece model that can be read: {error}") from None


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: number, and an integer or the bytes of anything else.

    Raises:
        ValueError: the message is damaged.
    """
    at, size = 0, len(data)
    while at < size:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if not number:
            raise ValueError("a field has the number 0")
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field has wire type {wire}")
        if length > size - at:
            raise ValueError("a field is longer than what is left of the file")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer at ``at``, and where the next field begins."""
    if at < len(data) and data[at] < 0x80:
        return data[at], at + 1
    value = 0
    for count, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value & (1 << 64) - 1, at + count + 1
    raise ValueError("a number is cut off")


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field is a number where it should be a message")
    return value


def _read_piece(data: bytes) -> tuple[str, float, int]:
    piece, score, kind = b"", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            piece = _message(value)
        elif number == 2:
            if not isinstance(value, bytes) or len(value) != _FLOAT.size:
                raise ValueError("a score is not a number")
            (score,) = _FLOAT.unpack(value)
        elif number == 3:
            if not isinstance(value, int) or not NORMAL <= value <= BYTE:
                raise ValueError(f"a piece is of type {value!r}; known are 1 to 6")
            kind = value
    if not 0 < len(piece) <= MAX_TOKEN_LENGTH:
        raise ValueError(f"a piece has {len(piece)} bytes; it must have 1 to {MAX_TOKEN_LENGTH}")
    if not math.isfinite(score):
        raise ValueError("a score is not finite")
    return piece.decode("utf-8"), score, kind  # UnicodeDecodeError is a ValueError


def _typed(name: str, value: int | bytes) -> int | bytes:
    if isinstance(value, int) == isinstance(_DEFAULTS[name], bytes):
        raise ValueError(f"{name} is of the wrong type")
    if isinstance(value, int) and value >> 63:  # negative numbers are written in 64 bits
        value -= 1 << 64
    return value


def _checked(pieces: list[str], scores: list[float], types: list[int], values: dict[str, Any]) -> SentencePieceModel:
    """The model, if its parts fit each other."""
    kind = values["model_type"]
    if kind not in (_UNIGRAM, _BPE):
        raise ValueError(f"model_type is {kind}; supported are 1 (unigram) and 2 (byte pair encoding)")
    unknown = [number for number, one in enumerate(types) if one == UNKNOWN]
    if len(unknown) != 1:
        raise ValueError(f"it has {len(unknown)} pieces of type unknown instead of one")
    for reserved in (False, True):
        names = [
            piece for piece, one in zip(pieces, types, strict=True) if (one in (UNKNOWN, CONTROL, BYTE)) is reserved
        ]
        if len(set(names)) < len(names):
            raise ValueError("a piece is there twice")
    if types.count(USER_DEFINED) > _MOST_USER_DEFINED:
        raise ValueError(f"it has more than {_MOST_USER_DEFINED} user-defined pieces")
    byte_pieces = {piece for piece, one in zip(pieces, types, strict=True) if one == BYTE}
    if values["byte_fallback"] and byte_pieces != {f"<0x{byte:02X}>" for byte in range(256)}:
        raise ValueError("byte_fallback needs the 256 pieces <0x00> to <0xFF>, and no others of their type")
    if byte_pieces and not values["byte_fallback"]:
        raise ValueError("it has pieces of bytes without byte_fallback")

    def control(name: str) -> int | None:
        number = values[name]
        return number if 0 <= number < len(pieces) and types[number] == CONTROL else None

    return SentencePieceModel(
        pieces=pieces,
        scores=scores,
        types=types,
        unigram=kind == _UNIGRAM,
        unk_id=unknown[0],
        bos_id=control("bos_id"),
        eos_id=control("eos_id"),
        pad_id=control("pad_id"),
        precompiled_charsmap=values["precompiled_charsmap"],
        **{name: bool(values[name]) for name in _FLAGS},
    )
