"""Text to tokens: special tokens are kept apart from the encoder, which sees plain text only.

The encoder is never asked to recognise special tokens, so text from outside can never turn into one. Where a chat
template writes a special token, :meth:`Tokenizer.encode_template` splits the text there and puts the id in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Protocol

from windlass.errors import InvalidRequestError
from windlass.text.byte_decoding import ByteDecoding
from windlass.text.tokenizer_facts import BOUNDARY, MARK, TokenizerFacts
from windlass.text.tokenizer_files import find_tokenizer


class Encoder(Protocol):
    """What turns plain text into ids. Safe to use from many threads."""

    def entry(self, token_id: int) -> str | None:
        """How the vocabulary writes a token, or None when there is no such id."""

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, with ``BOUNDARY`` as a token of its own.

        Raises:
            TypeError: the text holds a lone surrogate.
        """


class Tokenizer:
    """A model's tokenizer. Immutable after construction and safe to use from many threads.

    Attributes:
        path: the file it was read from.
        vocab_size: one more than the largest id.
        special_ids: ids of special tokens; they give no text.
        special_tokens: the tokenizer's named special tokens as chat templates see them, such as ``bos_token``.
        bos_id, eos_id: ids of ``bos_token`` and ``eos_token``, or None.
        bos_prefix: the ids that the tokenizer itself puts before a text (its own BOS), often none.
        around: the ids that its post-processor puts before a text, and those behind it.
        decoding: how tokens become bytes.
    """

    def __init__(self, encoder: Encoder, facts: TokenizerFacts, path: Path) -> None:
        self.path = path
        self._encoder = encoder
        self._facts = facts
        self.vocab_size = facts.vocab_size
        self.special_tokens = facts.special_tokens
        self.special_ids = frozenset(special.token_id for special in facts.specials.values())
        self.bos_id = facts.bos_id
        self.eos_id = facts.eos_id
        self.bos_prefix = facts.bos_prefix
        self.around = facts.around
        self.decoding: ByteDecoding = facts.decoding
        self._bytes: dict[int, bytes | None] = {}

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer:
        """Reads the tokenizer of a directory, from whichever of ``tokenizer_files.ACCEPTED`` it has.

        Raises:
            LoadError: no tokenizer that this engine can read, or a broken one.
        """
        from windlass.text.read_tokenizer import read_tokenizer  # the library takes 30 ms to import

        return cls(*read_tokenizer(Path(directory)))

    @property
    def facts(self) -> TokenizerFacts:
        """What is known of the tokenizer besides its vocabulary."""
        return self._facts

    @property
    def encoder(self) -> Encoder:
        """What encodes plain text."""
        return self._encoder

    @staticmethod
    def is_in(directory: Path) -> bool:
        """Whether the directory has files that :meth:`from_directory` reads."""
        return find_tokenizer(directory) is not None

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Token ids of plain text; strings of special tokens in it stay plain text.

        Args:
            text: any text. The noncharacter U+FDD0 is dropped.
            bos: put the tokenizer's own BOS, if it has one, before the ids.

        Raises:
            InvalidRequestError: the text holds a lone surrogate.
        """
        ids = self._encode(text)
        return [*self.bos_prefix, *ids] if bos else ids

    def encode_template(self, text: str) -> list[int]:
        """Token ids of a rendered template: special tokens become their ids, unless broken by ``MARK``.

        Every ``MARK`` is removed. Nothing is added at either end.
        """
        ids: list[int] = []
        start = 0
        for match in self._special_pattern.finditer(text):
            token = self._facts.specials[match[0]]
            before = text[start : match.start()]
            ids += self._encode_part(before.rstrip() if token.lstrip else before, first=start == 0)
            ids.append(token.token_id)
            start = match.end()
            if token.rstrip:
                start += len(text) - start - len(text[start:].lstrip())
        return ids + self._encode_part(text[start:], first=start == 0)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, without special tokens; ids outside the vocabulary give nothing.

        Bytes that are not UTF-8 become U+FFFD, one for each maximal subpart. (The tokenizers library differs there for
        ``<0xNN>`` tokens: it replaces every byte of a run that is not valid as a whole.)
        """
        parts: list[bytes] = []
        for token_id in ids:
            data = self.text_bytes(token_id, first=not parts)
            if data is not None:
                parts.append(data)
        data = b"".join(parts)
        stripped = data.lstrip(b" ")
        data = data[min(self.decoding.strip_spaces, len(data) - len(stripped)) :]
        return data.decode(errors="replace")

    def text_bytes(self, token_id: int, *, first: bool = False) -> bytes | None:
        """The bytes that a token adds to a text, or None for a special token or an id outside the vocabulary.

        Args:
            token_id: any id that is not negative.
            first: the token begins the text; differs for few tokenizers (Metaspace, WordPiece). A leading space that a
                decoder strips from the whole text is kept here.
        """
        if first and self.decoding.first_differs:
            entry = None if token_id in self.special_ids else self._entry(token_id)
            return None if entry is None else self.decoding.token_bytes(entry, first=True)
        try:
            return self._bytes[token_id]
        except KeyError:
            entry = None if token_id in self.special_ids else self._entry(token_id)
            data = None if entry is None else self.decoding.token_bytes(entry)
            if token_id < self.vocab_size:  # keep the table bounded
                self._bytes[token_id] = data
            return data

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; of a special token those of its name; empty for an id outside the vocabulary."""
        entry = self._entry(token_id)
        return b"" if entry is None else self.decoding.token_bytes(entry)

    def added_token_id(self, text: str) -> int | None:
        """The id of the special or otherwise added token written exactly ``text``, or None."""
        return self._facts.added_ids.get(text)

    @property
    def special_texts(self) -> tuple[str, ...]:
        """How the special tokens are written."""
        return tuple(self._facts.specials)

    def special_at_start(self, text: str) -> str | None:
        """The special token that ``text`` begins with, or None."""
        match = self._special_pattern.match(text)
        return match[0] if match else None

    @cached_property
    def longest_entry(self) -> int:
        """Bytes of the longest token, as the vocabulary writes it, which for some is more than it stands for."""
        return max(len((self._entry(token_id) or "").encode()) for token_id in range(self.vocab_size))

    def _entry(self, token_id: int) -> str | None:
        return self._encoder.entry(token_id) if token_id < self.vocab_size else None

    def _encode_part(self, text: str, *, first: bool) -> list[int]:
        text = text.replace(MARK, "")
        if not text:
            return []
        return self._encode(text if first else BOUNDARY + text)

    def _encode(self, text: str) -> list[int]:
        try:
            ids = self._encoder.encode(text)
        except TypeError as error:
            raise InvalidRequestError("the text is not valid Unicode (it holds a lone surrogate)") from error
        return [token_id for token_id in ids if token_id != self._facts.boundary_id] if BOUNDARY in text else ids

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """Matches the longest special token at the leftmost place, and nothing when there are none."""
        specials = self._facts.specials
        ordered = sorted(specials, key=len, reverse=True)
        words = (
            rf"(?<!\w){re.escape(text)}(?!\w)" if specials[text].single_word else re.escape(text) for text in ordered
        )
        return re.compile("|".join(words) if ordered else r"(?!)")
