"""Tokens to text, one at a time."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Mapping, Sequence
from typing import Protocol

from windlass.text.byte_decoding import ByteDecoding

# A character is at most four bytes, and a token at least one: more of the prompt cannot matter.
_TAIL = 8


class TokenTexts(Protocol):
    """What the detokenizer needs of a tokenizer."""

    @property
    def decoding(self) -> ByteDecoding:
        """How tokens become bytes."""

    def text_bytes(self, token_id: int, *, first: bool = False) -> bytes | None:
        """The bytes that a token adds to a text, or None if it is special."""


class IncrementalDetokenizer:
    """Turns a stream of token ids into a stream of text, in constant time per token.

    The pieces joined are ``tokenizer.decode()`` of all ids, however they are cut. A piece never ends inside a
    character: bytes that may still become one are held back. Bytes that cannot become valid are replaced with U+FFFD,
    one for each maximal subpart (Unicode 16.0, section 3.9). Special tokens give no text.

    Not thread-safe: one per stream.

    Args:
        tokenizer: the model's tokenizer.
        prompt_tail_ids: the prompt, or its last ids, when the text continues the prompt's (text completions): a
            leading space is then kept and a character begun in the prompt is completed. Leave empty for chat.
        shown: special tokens that do give text, and which.
    """

    def __init__(
        self, tokenizer: TokenTexts, prompt_tail_ids: Sequence[int] = (), shown: Mapping[int, str] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._shown = shown or {}
        self._strip = tokenizer.decoding.strip_spaces
        self._first = True
        self._pending = b""
        for token_id in prompt_tail_ids[-_TAIL:]:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes; often empty."""
        data = self._tokenizer.text_bytes(token_id, first=self._first)
        if data is None:
            return self.flush() + self._shown[token_id] if token_id in self._shown else ""
        self._first = False
        while self._strip and data:
            self._strip = self._strip - 1 if data.startswith(b" ") else 0
            data = data[1:] if data.startswith(b" ") else data
        data = self._pending + data
        text, used = utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text

    def flush(self) -> str:
        """What is held back, at the end of the stream: U+FFFD for an unfinished character, else the empty string."""
        text = self._pending.decode(errors="replace")
        self._pending = b""
        return text
