"""The parts of a model's text side that take long to make, from one load to the next: vocabulary and chat template."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from windlass.text.chat_template import Findings
from windlass.text.tokenizer import Tokenizer
from windlass.text.tokenizer_facts import TokenizerFacts
from windlass.text.tokenizer_files import BESIDE, find_tokenizer

LEAST_BYTES = 1 << 20
"""Tokenizers in smaller files are read in a moment."""

LEAST_DENSE_BYTES = 1 << 18
"""The same of metadata of GGUF files and of SentencePiece's models, which are shorter than JSON."""

_REVISION = 6
"""To be raised when the same files give another pack than before."""

_MAGIC = b"WLTEXT01"
_HEAD = struct.Struct("=8sIIQ")  # magic, checksum of what follows it, bytes of JSON, bytes of tables

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


class TextCache(Protocol):
    """Files by name that can be made again; see ``windlass.weights.FileCache``."""

    def open(self, name: str) -> int | None:
        """Return a descriptor for reading, which the caller closes, or None."""

    def write(self, name: str, size: int, fill: Callable[[int], None]) -> bool:
        """Make the file with what ``fill`` writes to the descriptor."""


@dataclass(slots=True)
class TextPack:
    """The tokenizer of a model directory, and what is known of its chat template, from a file or made anew.

    A file has the hash of all that it was made from in its name and a checksum over all of it; a damaged one is not
    used. ``findings`` is None when nothing is known.
    """

    tokenizer: Tokenizer
    findings: Findings | None
    _cache: TextCache | None
    _name: str | None
    """Under which to keep it; None when it is kept already, or shall not be."""

    @classmethod
    def open(cls, directory: Path, cache: TextCache | None) -> TextPack:
        """The pack of a model directory.

        Raises:
            LoadError: no tokenizer that this engine can read, or a broken one.
        """
        name = None if cache is None else _name(directory)
        return cls._open(cache, name, directory.joinpath, lambda: Tokenizer.from_directory(directory))

    @classmethod
    def open_gguf(cls, path: Path, metadata: Mapping[str, Any], cache: TextCache | None) -> TextPack:
        """The pack of a GGUF file.

        Raises:
            LoadError: it has no tokenizer that this engine can read, or a broken one.
        """

        def make() -> Tokenizer:
            from windlass.text.gguf_tokenizer import read_gguf_tokenizer  # with the library, 30 ms to import

            return Tokenizer(*read_gguf_tokenizer(path, metadata))

        name = None if cache is None else _gguf_name(metadata)
        return cls._open(cache, name, lambda _: path, make)

    @classmethod
    def _open(
        cls, cache: TextCache | None, name: str | None, place: Callable[[str], Path], make: Callable[[], Tokenizer]
    ) -> TextPack:
        """The pack called ``name``, whose tokenizer is at ``place`` of its file's name, or else what ``make`` gives."""
        if cache is not None and name is not None:
            known = _restored(place, _read(cache, name))
            if known is not None:
                return cls(*known, cache, None)
        return cls(make(), None, cache, name)

    def keep(self, findings: Findings | None) -> None:
        """Keep a pack that was made anew, if it is of a kind that can be kept; ``tokenizer`` then encodes with it.

        Args:
            findings: what became known of the chat template.
        """
        cache, name, encoder = self._cache, self._name, self.tokenizer.encoder
        if cache is None or name is None:
            return
        from windlass.text.library_tokenizer import LibraryEncoder  # the library takes 30 ms to import
        from windlass.text.packed_bpe import PackedBpe
        from windlass.text.packing import pack_bpe, pack_sentencepiece
        from windlass.text.sentencepiece_tokenizer import SentencePieceEncoder

        if isinstance(encoder, LibraryEncoder):
            entries = [encoder.entry(token_id) for token_id in range(self.tokenizer.vocab_size)]
            packed = pack_bpe(encoder.to_json(), entries)
        elif isinstance(encoder, SentencePieceEncoder):
            packed = pack_sentencepiece(encoder)
        else:
            return
        if packed is None:
            return
        meta, tables = packed
        values = {
            "file": self.tokenizer.path.name,
            "facts": self.tokenizer.facts.to_json(),
            "findings": None if findings is None else findings.to_json(),
            "bpe": meta,
        }
        text = json.dumps(values).encode()
        text += b" " * (-(_HEAD.size + len(text)) % 8)  # the tables are used where they lie
        checksum = zlib.crc32(tables, zlib.crc32(text))
        data = _HEAD.pack(_MAGIC, checksum, len(text), len(tables)) + text + tables
        cache.write(name, len(data), lambda descriptor: _write(descriptor, data))
        facts, path = self.tokenizer.facts, self.tokenizer.path
        self.tokenizer = Tokenizer(PackedBpe(meta, memoryview(tables)), facts, path)


def _name(directory: Path) -> str | None:
    """The name for the pack of a directory, made from the contents of its files; None when it is not worth keeping."""
    digest = hashlib.sha256()
    size = 0
    try:
        digest.update(repr(_versions()).encode())
        vocabulary = find_tokenizer(directory)
        for file in [
            *((vocabulary,) if vocabulary is not None else ()),
            *(directory / name for name in (*BESIDE, *_TEMPLATE_FILES)),
            *sorted(directory.glob("additional_chat_templates/*.jinja")),
        ]:
            try:
                content = file.read_bytes()
            except FileNotFoundError:
                continue
            size += len(content)
            digest.update(repr((file.name, len(content))).encode())
            digest.update(content)
    except OSError:
        return None  # whoever reads the file says what is wrong
    dense = vocabulary is not None and vocabulary.suffix not in (".json", ".txt")
    return f"{digest.hexdigest()}.text" if size >= (LEAST_DENSE_BYTES if dense else LEAST_BYTES) else None


def _gguf_name(metadata: Mapping[str, Any]) -> str | None:
    """The name for the pack of a GGUF file, made from its metadata of text; None when it is not worth keeping."""
    digest = hashlib.sha256()
    digest.update(repr(("gguf", *_versions())).encode())
    size = 0
    for key, value in sorted(metadata.items()):
        if not key.startswith("tokenizer."):
            continue
        is_text = isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
        content = "\0".join(value) if is_text else repr(value)
        written = content.encode("utf-8", "surrogatepass")
        size += len(written)
        digest.update(repr((key, is_text, len(value) if is_text else 0, len(written))).encode())
        digest.update(written)
    return f"{digest.hexdigest()}.text" if size >= LEAST_DENSE_BYTES else None


def _versions() -> tuple[object, ...]:
    """What packs depend on besides the files."""
    return _REVISION, _installed("tokenizers"), _installed("jinja2")


def _installed(library: str) -> tuple[int, int] | None:
    """What changes when another version of a library is installed, without importing it."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        return None
    status = Path(spec.origin).stat()
    return status.st_size, status.st_mtime_ns


def _read(cache: TextCache, name: str) -> bytes | None:
    descriptor = cache.open(name)
    if descriptor is None:
        return None
    try:
        with os.fdopen(descriptor, "rb") as file:
            return file.read()
    except OSError:
        return None


def _write(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(data)


def _restored(place: Callable[[str], Path], data: bytes | None) -> tuple[Tokenizer, Findings | None] | None:
    """What a file holds, or None when it is damaged."""
    if data is None or len(data) < _HEAD.size:
        return None
    magic, checksum, text_bytes, table_bytes = _HEAD.unpack_from(data)
    body = memoryview(data)[_HEAD.size :]
    if magic != _MAGIC or len(body) != text_bytes + table_bytes or zlib.crc32(body) != checksum:
        return None
    from windlass.text.packed_bpe import PackedBpe  # the native core takes numpy to import

    try:
        values: dict[str, Any] = json.loads(bytes(body[:text_bytes]))
        encoder = PackedBpe(values["bpe"], body[text_bytes:])
        tokenizer = Tokenizer(encoder, TokenizerFacts.from_json(values["facts"]), place(values["file"]))
        findings = values["findings"]
        return tokenizer, None if findings is None else Findings.from_json(findings)
    except (KeyError, TypeError, ValueError):
        return None
