"""What bytes each token stands for, read from the ``decoder`` of a tokenizer.json.

Every decoder in use by language models turns tokens into text one by one, except for a leading space. Knowing the bytes
of each token makes incremental decoding exact and cheap, and grammars and ``logprobs`` need the same table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from windlass.errors import LoadError

_SUPPORTED = "ByteLevel, ByteFallback, Replace, Fuse, Strip (of leading spaces), Metaspace and WordPiece"

# What the library's WordPiece step does to each token when it tidies up; the space is the one before the token.
_TIDIED = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" n't", "n't"), (" 'm", "'m")),
    *((" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 for itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_ALPHABET = byte_level_alphabet()


@dataclass(frozen=True, slots=True)
class ByteDecoding:
    """The rules that turn a token's vocabulary entry into bytes.

    Attributes:
        byte_level: entries are written in GPT-2's byte alphabet.
        byte_fallback: an entry such as ``<0xE2>`` is that byte.
        replacements: (old, new) pairs applied to every entry, in order.
        strip_spaces: number of spaces dropped from the start of a text, if it has them.
        first_drops: a string that the first token of a text loses wholly (Metaspace), or "".
        inner_prefix: begins the tokens within a word, and is dropped; other tokens get a space before them, but for
            the first of a text (WordPiece). Or "".
    """

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    strip_spaces: int = 0
    first_drops: str = ""
    inner_prefix: str = ""

    @property
    def first_differs(self) -> bool:
        """Whether a token is other bytes where it begins a text; not for a space of the whole text."""
        return bool(self.first_drops or self.inner_prefix)

    def token_bytes(self, entry: str, *, first: bool = False) -> bytes:
        """The bytes of the token whose vocabulary entry is ``entry``; ``first`` when it begins a text."""
        if self.byte_fallback and len(entry) == 6 and entry.startswith("<0x") and entry.endswith(">"):
            try:
                return bytes.fromhex(entry[3:5])
            except ValueError:
                pass
        if first and self.first_drops:
            entry = entry.replace(self.first_drops, "")
        if self.inner_prefix and not first:
            inner = entry.startswith(self.inner_prefix)
            entry = entry[len(self.inner_prefix) :] if inner else f" {entry}"
        for old, new in self.replacements:
            entry = entry.replace(old, new)
        if self.byte_level:
            try:
                return bytes([_ALPHABET[character] for character in entry])
            except KeyError:
                # An added token such as "<｜end｜>" is not written in the byte alphabet: it stands for itself.
                return entry.encode()
        return entry.encode()


def read_decoder(state: bytes | None, path: Path) -> ByteDecoding:
    """The rules of a tokenizer's decoder.

    Args:
        state: the decoder's JSON, or None when the tokenizer has none.
        path: the file it came from, for the error.

    Raises:
        LoadError: the decoder does something that this engine does not know.
    """
    if state is None:
        raise LoadError(path, f"the tokenizer has no decoder; accepted are {_SUPPORTED}")
    decoding = ByteDecoding()
    fused = False
    for step in _flatten(json.loads(state)):
        kind = step.get("type")
        if kind == "Fuse":
            fused = True
        else:
            decoding = _add_step(decoding, kind, step, fused=fused, path=path)
    return decoding


def _flatten(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step.get("type") != "Sequence":
        return [step]
    return [inner for part in step["decoders"] for inner in _flatten(part)]


def _add_step(
    decoding: ByteDecoding, kind: str | None, step: dict[str, Any], *, fused: bool, path: Path
) -> ByteDecoding:
    if kind == "ByteLevel":
        return replace(decoding, byte_level=True)
    if kind == "ByteFallback":
        return replace(decoding, byte_fallback=True)
    if kind == "Replace" and "String" in step["pattern"]:
        pair = (step["pattern"]["String"], step["content"])
        return replace(decoding, replacements=(*decoding.replacements, pair))
    if kind == "Strip" and fused and step["content"] == " " and step["stop"] == 0:
        return replace(decoding, strip_spaces=step["start"])
    if kind == "Metaspace":
        mark = step["replacement"]
        drops = "" if step.get("prepend_scheme") == "never" or step.get("add_prefix_space") is False else mark
        return replace(decoding, replacements=(*decoding.replacements, (mark, " ")), first_drops=drops)
    if kind == "WordPiece" and step["prefix"]:
        tidied = _TIDIED if step["cleanup"] else ()
        return replace(decoding, inner_prefix=step["prefix"], replacements=(*decoding.replacements, *tidied))
    raise LoadError(
        path, f"the tokenizer's decoder step {json.dumps(step)} is not supported; accepted are {_SUPPORTED}"
    )
