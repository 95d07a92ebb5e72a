"""Text to tokens: a thin layer over the ``tokenizers`` library.

The library itself is never asked to recognise special tokens, so text from outside can never turn into one. Where a
chat template writes a special token, :meth:`Tokenizer.encode_template` splits the text there and puts the id in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken
from tokenizers import Tokenizer as _Backend

from windlass.errors import InvalidRequestError, LoadError
from windlass.json_files import read_json_object
from windlass.text.byte_decoding import ByteDecoding, read_decoder

# Unicode noncharacters (U+FDD0 to U+FDEF are reserved for use inside a program). _BOUNDARY stands before a stretch of
# text that does not begin the prompt, so that the backend adds no leading space to it where it should not; MARK breaks
# the special tokens that occur in text from outside (see guard.py). Both are dropped from text from outside.
_BOUNDARY = "\ufdd0"
MARK = "\ufdd1"

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A model's tokenizer. Immutable after construction and safe to use from many threads.

    Attributes:
        path: the file it was read from.
        vocab_size: one more than the largest id.
        special_ids: ids of special tokens; they give no text.
        special_tokens: the tokenizer's named special tokens as chat templates see them, such as ``bos_token``.
        bos_id, eos_id: ids of ``bos_token`` and ``eos_token``, or None.
        bos_prefix: the ids that the tokenizer itself puts before a text (its own BOS), often none.
        decoding: how tokens become bytes.
    """

    def __init__(self, backend: _Backend, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        self.special_tokens = _named_special_tokens(config)
        _mark_special(backend, self.special_tokens, config)
        added = backend.get_added_tokens_decoder()
        self.vocab_size = max([backend.get_vocab_size() - 1, *added]) + 1
        self._added_ids = {token.content: token_id for token_id, token in added.items()}
        self._specials = {token.content: token for token in added.values() if token.special and token.content}
        self.special_ids = frozenset(self._added_ids[content] for content in self._specials)
        self._special_pattern = _alternatives(self._specials)
        self.decoding: ByteDecoding = read_decoder(_decoder_state(backend), path)
        backend.encode_special_tokens = True
        backend.add_tokens([AddedToken(_BOUNDARY, normalized=False, special=False)])
        self._boundary_id = backend.token_to_id(_BOUNDARY)
        self._bytes: dict[int, bytes | None] = {}
        self.bos_id = self._id_of_named("bos_token")
        self.eos_id = self._id_of_named("eos_token")
        self.bos_prefix = self._find_bos_prefix(config.get("add_bos_token"))

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer:
        """Reads ``tokenizer.json``, or builds a byte-level BPE from ``vocab.json`` and ``merges.txt``.

        Raises:
            LoadError: no tokenizer that this engine can read, or a broken one.
        """
        directory = Path(directory)
        config = _read_config(directory)
        path = directory / "tokenizer.json"
        try:
            if path.is_file():
                return cls(_Backend.from_file(str(path)), path, config)
            if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
                path = directory / "vocab.json"
                return cls(_byte_level_bpe(directory, config), path, config)
        except (LoadError, MemoryError):
            raise
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise LoadError(path, f"is not a tokenizer that the tokenizers library can read: {error}") from error
        accepted = "accepted are tokenizer.json, or vocab.json with merges.txt (byte-level BPE)"
        if (directory / "tokenizer.model").is_file():
            raise LoadError(directory / "tokenizer.model", f"a SentencePiece model alone cannot be read; {accepted}")
        raise LoadError(directory, f"has no tokenizer; {accepted}")

    @staticmethod
    def is_in(directory: Path) -> bool:
        """Whether the directory has files that :meth:`from_directory` reads."""
        files = {path.name for path in directory.iterdir()}
        return "tokenizer.json" in files or {"vocab.json", "merges.txt"} <= files

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
            token = self._specials[match[0]]
            before = text[start : match.start()]
            ids += self._encode_part(before.rstrip() if token.lstrip else before, first=start == 0)
            ids.append(self._added_ids[match[0]])
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
            first: the token begins the text; differs for few tokenizers (Metaspace). A leading space that a decoder
                strips from the whole text is kept here.
        """
        if first and self.decoding.first_drops:
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
        return self._added_ids.get(text)

    @property
    def special_texts(self) -> tuple[str, ...]:
        """How the special tokens are written."""
        return tuple(self._specials)

    def special_at_start(self, text: str) -> str | None:
        """The special token that ``text`` begins with, or None."""
        match = self._special_pattern.match(text)
        return match[0] if match else None

    def _entry(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id) if token_id < self.vocab_size else None

    def _encode_part(self, text: str, *, first: bool) -> list[int]:
        text = text.replace(MARK, "")
        if not text:
            return []
        return self._encode(text if first else _BOUNDARY + text)

    def _encode(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise InvalidRequestError("the text is not valid Unicode (it holds a lone surrogate)") from error
        return [token_id for token_id in ids if token_id != self._boundary_id] if _BOUNDARY in text else ids

    def _id_of_named(self, name: str) -> int | None:
        content = self.special_tokens.get(name)
        return self._backend.token_to_id(content) if isinstance(content, str) else None

    def _find_bos_prefix(self, add_bos_token: object) -> tuple[int, ...]:
        """What the post-processor puts before a text; ``add_bos_token`` of tokenizer_config.json overrules it."""
        if isinstance(add_bos_token, bool):
            return (self.bos_id,) if add_bos_token and self.bos_id is not None else ()
        plain: list[int] = self._backend.encode("a", add_special_tokens=False).ids
        full: list[int] = self._backend.encode("a", add_special_tokens=True).ids
        count = len(full) - len(plain)
        starts = [start for start in range(count + 1) if full[start : start + len(plain)] == plain]
        return tuple(full[: starts[0]]) if starts else ()


def _read_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, with names that only the older special_tokens_map.json gives."""
    config = read_json_object(directory / "tokenizer_config.json", missing_ok=True)
    older = read_json_object(directory / "special_tokens_map.json", missing_ok=True)
    return {**older, **config}


def _content(token: object) -> str | None:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _named_special_tokens(config: Mapping[str, Any]) -> dict[str, str | list[str]]:
    named: dict[str, str | list[str]] = {}
    for name in _NAMED:
        if (content := _content(config.get(name))) is not None:
            named[name] = content
    additional = config.get("additional_special_tokens") or config.get("extra_special_tokens")
    if isinstance(additional, Mapping):  # newer files name the extra tokens
        named.update({str(name): content for name, token in additional.items() if (content := _content(token))})
    elif isinstance(additional, list):
        contents = [content for token in additional if (content := _content(token)) is not None]
        if contents:
            named["additional_special_tokens"] = contents
    return named


def _mark_special(backend: _Backend, named: Mapping[str, str | list[str]], config: Mapping[str, Any]) -> None:
    """Tells the backend of special tokens that only tokenizer_config.json knows; never makes a new id."""
    contents = [text for value in named.values() for text in ([value] if isinstance(value, str) else value)]
    declared = config.get("added_tokens_decoder")
    if isinstance(declared, Mapping):
        special = [token for token in declared.values() if isinstance(token, Mapping) and token.get("special") is True]
        contents += [content for token in special if (content := _content(token)) is not None]
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    missing = [text for text in dict.fromkeys(contents) if text not in known and backend.token_to_id(text) is not None]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in missing])


def _decoder_state(backend: _Backend) -> bytes | None:
    decoder = backend.decoder
    return None if decoder is None else bytes(decoder.__getstate__())


def _alternatives(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of ``texts`` at the leftmost place, and nothing when there are none."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) if ordered else r"(?!)")


def _byte_level_bpe(directory: Path, config: Mapping[str, Any]) -> _Backend:
    """GPT-2's tokenizer from its three files."""
    model = tokenizers.models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
    backend = _Backend(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
    backend.decoder = tokenizers.decoders.ByteLevel()
    added = read_json_object(directory / "added_tokens.json", missing_ok=True)
    size = backend.get_vocab_size()
    for text, token_id in sorted(added.items(), key=lambda item: item[1]):
        backend.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        if backend.token_to_id(text) != token_id:
            reason = f"token {text!r} has id {token_id}, but the ids after the {size} of vocab.json must be contiguous"
            raise LoadError(directory / "added_tokens.json", reason)
    return backend
