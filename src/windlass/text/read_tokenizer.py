"""From the files of a model directory to its tokenizer, whatever kind of files they are."""

from __future__ import annotations

import os
from pathlib import Path

from windlass.errors import LoadError
from windlass.text.byte_ranks import is_tiktoken, read_tekken, read_tiktoken
from windlass.text.library_tokenizer import LibraryEncoder, read_library_file
from windlass.text.sentencepiece_tokenizer import SentencePieceEncoder, read_sentencepiece
from windlass.text.tokenizer_config import read_tokenizer_config
from windlass.text.tokenizer_facts import TokenizerFacts
from windlass.text.tokenizer_files import ACCEPTED, find_tokenizer
from windlass.text.vocab_files import read_byte_level, read_word_piece

MAX_BYTES = 16 << 20
"""Of a file that is not JSON; several times as many as any in use has."""

Parts = tuple[LibraryEncoder | SentencePieceEncoder, TokenizerFacts, Path]


def read_tokenizer(directory: Path) -> Parts:
    """Read the tokenizer of a directory.

    Returns:
        The encoder, what is to be known of it, and the file it came from.

    Raises:
        LoadError: no tokenizer that this engine can read, or a broken one.
    """
    config = read_tokenizer_config(directory)
    try:
        path = find_tokenizer(directory)
    except OSError as error:
        raise LoadError(directory, f"cannot be read: {error.strerror}") from error
    if path is None:
        raise LoadError(directory, f"has no tokenizer; accepted are {ACCEPTED}")
    if path.name == "tokenizer.json":
        return read_library_file(path, config)
    if path.name == "tekken.json":
        return read_tekken(path, config)
    if path.name == "vocab.json":
        return read_byte_level(path, _read(path.with_name("merges.txt")), config)
    data = _read(path)
    if path.name == "vocab.txt":
        return read_word_piece(path, data, config)
    if is_tiktoken(data):
        return read_tiktoken(path, data, config)
    return read_sentencepiece(path, data, config)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise LoadError(path, f"{size} bytes are too many for a tokenizer; at most {MAX_BYTES} are read")
            return file.read(MAX_BYTES)
    except OSError as error:
        raise LoadError(path, f"cannot be read: {error.strerror}") from error
