"""SentencePiece model files, field by field, so that each can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

PIECES: tuple[tuple[str, float, int], ...] = (
    ("<unk>", 0.0, UNKNOWN),
    ("<s>", 0.0, CONTROL),
    ("</s>", 0.0, CONTROL),
    ("▁", -4.0, NORMAL),
    ("h", -5.0, NORMAL),
    ("e", -6.0, NORMAL),
    ("he", -1.0, NORMAL),
    ("▁he", -2.0, NORMAL),
    ("<|user|>", 0.0, USER_DEFINED),
    ("<", -7.0, NORMAL),
    ("s", -8.0, NORMAL),
    (">", -9.0, NORMAL),
)
UNIGRAM, BPE = 1, 2


def varint(value: int) -> bytes:
    """A number, seven bits at a time; negative ones take ten bytes."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | float | bytes) -> bytes:
    """One field of a message."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def sentencepiece_model(
    pieces: Iterable[tuple[str, float, int]] = PIECES,
    *,
    trainer: Mapping[int, int | bytes] | None = None,
    normalizer: Mapping[int, int | bytes] | None = None,
    kind: int = BPE,
) -> bytes:
    """A model file; ``trainer`` and ``normalizer`` are more fields of these messages, by their numbers."""
    written = b"".join(
        field(1, field(1, piece.encode()) + field(2, score) + field(3, one)) for piece, score, one in pieces
    )
    specs = ((2, {3: kind, **(trainer or {})}), (3, {4: 0, **(normalizer or {})}))
    return written + b"".join(
        field(number, b"".join(field(key, value) for key, value in spec.items())) for number, spec in specs
    )
