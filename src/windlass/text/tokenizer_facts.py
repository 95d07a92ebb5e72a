"""What is known of a tokenizer besides its vocabulary."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from windlass.text.byte_decoding import ByteDecoding

# Unicode noncharacters (U+FDD0 to U+FDEF are reserved for use inside a program). BOUNDARY stands before a stretch of
# text that does not begin the prompt, so that the encoder adds no leading space to it where it should not; MARK breaks
# the special tokens that occur in text from outside (see guard.py). Both are dropped from text from outside.
BOUNDARY = "\ufdd0"
MARK = "\ufdd1"

NO_TEXT = "\ufdd2"
"""Begins an encoder's own names for tokens that no text can become."""


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A special token: its id, whether it swallows the white space before and behind it, and is none within a word."""

    token_id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """Attributes as of ``Tokenizer``; ``added_ids`` are all added tokens, ``specials`` those that are special."""

    vocab_size: int
    added_ids: dict[str, int]
    specials: dict[str, SpecialToken]
    special_tokens: dict[str, str | list[str]]
    boundary_id: int | None
    bos_id: int | None
    eos_id: int | None
    bos_prefix: tuple[int, ...]
    decoding: ByteDecoding
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def to_json(self) -> dict[str, Any]:
        """As an object of JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TokenizerFacts:
        """What ``to_json`` gave, when JSON has carried it."""
        decoding = dict(values["decoding"])
        decoding["replacements"] = tuple((old, new) for old, new in decoding["replacements"])
        return cls(
            **{
                **values,
                "specials": {content: SpecialToken(**special) for content, special in values["specials"].items()},
                "bos_prefix": tuple(values["bos_prefix"]),
                "around": tuple(map(tuple, values["around"])),
                "decoding": ByteDecoding(**decoding),
            }
        )
