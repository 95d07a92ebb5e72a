"""The ``tokenizers`` library behind ``text/tokenizer.py``: reading a tokenizer, and all that is ever asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken
from tokenizers import Tokenizer as _Library

from windlass.errors import LoadError
from windlass.json_files import read_json_object
from windlass.text.byte_decoding import read_decoder
from windlass.text.tokenizer_facts import BOUNDARY, SpecialToken, TokenizerFacts

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class LibraryEncoder:
    """A tokenizer of the library as an ``Encoder``."""

    def __init__(self, library: _Library) -> None:
        self._library = library

    def entry(self, token_id: int) -> str | None:
        """See ``Encoder``."""
        entry: str | None = self._library.id_to_token(token_id)
        return entry

    def encode(self, text: str) -> list[int]:
        """See ``Encoder``."""
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def to_json(self) -> str:
        """The whole tokenizer as a tokenizer.json."""
        text: str = self._library.to_str()
        return text


def read_library_tokenizer(directory: Path) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    """Read ``tokenizer.json``, or build a byte-level BPE from ``vocab.json`` and ``merges.txt``.

    Returns:
        The encoder, what is to be known of it, and the file it came from.

    Raises:
        LoadError: no tokenizer that this engine can read, or a broken one.
    """
    config = _read_config(directory)
    path = directory / "tokenizer.json"
    try:
        if path.is_file():
            return _prepared(_Library.from_file(str(path)), path, config)
        if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
            path = directory / "vocab.json"
            return _prepared(_byte_level_bpe(directory, config), path, config)
    except (LoadError, MemoryError):
        raise
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise LoadError(path, f"is not a tokenizer that the tokenizers library can read: {error}") from error
    accepted = "accepted are tokenizer.json, or vocab.json with merges.txt (byte-level BPE)"
    if (directory / "tokenizer.model").is_file():
        raise LoadError(directory / "tokenizer.model", f"a SentencePiece model alone cannot be read; {accepted}")
    raise LoadError(directory, f"has no tokenizer; {accepted}")


def read_library_json(text: str, path: Path, config: Mapping[str, Any]) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    """Make a tokenizer from the text of a tokenizer.json.

    Args:
        text: the whole tokenizer.
        path: the file that it was made from.
        config: named special tokens and settings, as in tokenizer_config.json.

    Raises:
        LoadError: the library refuses it.
    """
    try:
        return _prepared(_Library.from_str(text), path, config)
    except (LoadError, MemoryError):
        raise
    except Exception as error:  # the library raises bare Exception for what it does not accept
        raise LoadError(path, f"its tokenizer is broken: {error}") from error


def _prepared(library: _Library, path: Path, config: Mapping[str, Any]) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    library.no_truncation()
    library.no_padding()
    named = _named_special_tokens(config)
    _mark_special(library, named, config)
    added = library.get_added_tokens_decoder()
    added_ids = {token.content: token_id for token_id, token in added.items()}
    specials = {
        token.content: SpecialToken(added_ids[token.content], token.lstrip, token.rstrip)
        for token in added.values()
        if token.special and token.content
    }
    vocab_size = max([library.get_vocab_size() - 1, *added]) + 1
    decoding = read_decoder(_decoder_state(library), path)
    library.encode_special_tokens = True
    library.add_tokens([AddedToken(BOUNDARY, normalized=False, special=False)])
    bos_id = _id_of_named(library, named, "bos_token")
    facts = TokenizerFacts(
        vocab_size=vocab_size,
        added_ids=added_ids,
        specials=specials,
        special_tokens=named,
        boundary_id=library.token_to_id(BOUNDARY),
        bos_id=bos_id,
        eos_id=_id_of_named(library, named, "eos_token"),
        bos_prefix=_find_bos_prefix(library, config.get("add_bos_token"), bos_id),
        decoding=decoding,
    )
    return LibraryEncoder(library), facts, path


def _id_of_named(library: _Library, named: Mapping[str, str | list[str]], name: str) -> int | None:
    content = named.get(name)
    token_id: int | None = library.token_to_id(content) if isinstance(content, str) else None
    return token_id


def _find_bos_prefix(library: _Library, add_bos_token: object, bos_id: int | None) -> tuple[int, ...]:
    """What the post-processor puts before a text; ``add_bos_token`` of tokenizer_config.json overrules it."""
    if isinstance(add_bos_token, bool):
        return (bos_id,) if add_bos_token and bos_id is not None else ()
    plain: list[int] = library.encode("a", add_special_tokens=False).ids
    full: list[int] = library.encode("a", add_special_tokens=True).ids
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


def _mark_special(library: _Library, named: Mapping[str, str | list[str]], config: Mapping[str, Any]) -> None:
    """Tells the library of special tokens that only tokenizer_config.json knows; never makes a new id."""
    contents = [text for value in named.values() for text in ([value] if isinstance(value, str) else value)]
    declared = config.get("added_tokens_decoder")
    if isinstance(declared, Mapping):
        special = [token for token in declared.values() if isinstance(token, Mapping) and token.get("special") is True]
        contents += [content for token in special if (content := _content(token)) is not None]
    known = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
    missing = [text for text in dict.fromkeys(contents) if text not in known and library.token_to_id(text) is not None]
    library.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in missing])


def _decoder_state(library: _Library) -> bytes | None:
    decoder = library.decoder
    return None if decoder is None else bytes(decoder.__getstate__())


def _byte_level_bpe(directory: Path, config: Mapping[str, Any]) -> _Library:
    """GPT-2's tokenizer from its three files."""
    model = tokenizers.models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
    library = _Library(model)
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
    library.decoder = tokenizers.decoders.ByteLevel()
    added = read_json_object(directory / "added_tokens.json", missing_ok=True)
    size = library.get_vocab_size()
    for text, token_id in sorted(added.items(), key=lambda item: item[1]):
        library.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        if library.token_to_id(text) != token_id:
            reason = f"token {text!r} has id {token_id}, but the ids after the {size} of vocab.json must be contiguous"
            raise LoadError(directory / "added_tokens.json", reason)
    return library
