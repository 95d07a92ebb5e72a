"""The ``tokenizers`` library behind ``text/tokenizer.py``: reading a tokenizer, and all that is ever asked of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as _Library
from tokenizers.models import Unigram

from windlass.errors import LoadError
from windlass.text.byte_decoding import read_decoder
from windlass.text.tokenizer_config import named_special_tokens, special_contents
from windlass.text.tokenizer_facts import BOUNDARY, NO_TEXT, SpecialToken, TokenizerFacts


class LibraryEncoder:
    """A tokenizer of the library as an ``Encoder``.

    Args:
        library: the tokenizer.
        named: tokens that the library knows by another name, or not at all.
        broken: texts that are entries of the vocabulary, and must not become that entry all the same.
    """

    def __init__(self, library: _Library, named: Mapping[int, str], broken: Iterable[str] = ()) -> None:
        self._library = library
        self._named = named
        ordered = sorted(broken, key=len, reverse=True)
        self._broken = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def entry(self, token_id: int) -> str | None:
        """See ``Encoder``."""
        entry: str | None = self._named.get(token_id) or self._library.id_to_token(token_id)
        return None if entry is not None and entry.startswith(NO_TEXT) else entry

    def encode(self, text: str) -> list[int]:
        """See ``Encoder``."""
        if self._broken is not None and self._broken.search(text):
            text = self._broken.sub(lambda match: match[0][0] + BOUNDARY + match[0][1:], text)
            boundary = self._library.token_to_id(BOUNDARY)
            return [token_id for token_id in self._encode(text) if token_id != boundary]
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def to_json(self) -> str:
        """The whole tokenizer as a tokenizer.json."""
        text: str = self._library.to_str()
        return text


def read_library_file(path: Path, config: Mapping[str, Any]) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    """Read a ``tokenizer.json``; the rest as ``read_library_json``."""
    try:
        return _prepared(_Library.from_file(str(path)), path, config, {})
    except (LoadError, MemoryError):
        raise
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise LoadError(path, f"is not a tokenizer that the tokenizers library can read: {error}") from error


def read_library_json(
    text: str, path: Path, config: Mapping[str, Any], hidden: Mapping[int, str] | None = None
) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    """Make a tokenizer from the text of a tokenizer.json.

    Args:
        text: the whole tokenizer.
        path: the file that it was made from.
        config: named special tokens and settings, as in tokenizer_config.json.
        hidden: special tokens whose ids have other names in ``text``, which no text can become.

    Returns:
        The encoder, what is to be known of it, and ``path``.

    Raises:
        LoadError: the library refuses it.
    """
    try:
        return _prepared(_Library.from_str(text), path, config, hidden or {})
    except (LoadError, MemoryError):
        raise
    except Exception as error:  # the library raises bare Exception for what it does not accept
        raise LoadError(path, f"its tokenizer is broken: {error}") from error


def _prepared(
    library: _Library, path: Path, config: Mapping[str, Any], hidden: Mapping[int, str]
) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    library = _without_clash(library)
    library.no_truncation()
    library.no_padding()
    named = named_special_tokens(config)
    _mark_special(library, config)
    added = library.get_added_tokens_decoder()
    added_ids = {token.content: token_id for token_id, token in added.items()}
    specials = {
        token.content: SpecialToken(added_ids[token.content], token.lstrip, token.rstrip, token.single_word)
        for token in added.values()
        if token.special and token.content
    }
    hidden_ids = {content: token_id for token_id, content in hidden.items()}
    specials |= {content: SpecialToken(token_id) for content, token_id in hidden_ids.items()}
    vocab_size = max([library.get_vocab_size() - 1, *added, *hidden]) + 1
    decoding = read_decoder(_decoder_state(library), path)
    library.encode_special_tokens = True
    library.add_tokens([AddedToken(BOUNDARY, normalized=False, special=False)])

    def named_id(name: str) -> int | None:
        content = named.get(name)
        if not isinstance(content, str):
            return None
        token_id: int | None = hidden_ids.get(content, library.token_to_id(content))
        return token_id

    bos_id = named_id("bos_token")
    around = _find_around(library)
    add_bos = config.get("add_bos_token")  # overrules the post-processor
    facts = TokenizerFacts(
        vocab_size=vocab_size,
        added_ids=added_ids | hidden_ids,
        specials=specials,
        special_tokens=named,
        boundary_id=library.token_to_id(BOUNDARY),
        bos_id=bos_id,
        eos_id=named_id("eos_token"),
        bos_prefix=around[0] if not isinstance(add_bos, bool) else (bos_id,) if add_bos and bos_id is not None else (),
        around=around,
        decoding=decoding,
    )
    # It looks for the likeliest pieces in the whole text, and special tokens are pieces to it.
    is_unigram = isinstance(library.model, Unigram)
    broken = [text for text in specials if len(text) > 1 and text not in hidden_ids] if is_unigram else []
    return LibraryEncoder(library, hidden, broken), facts, path


def _without_clash(library: _Library) -> _Library:
    """Fill the holes in a vocabulary if a new token would get an id that is taken, since the library only counts."""
    size = library.get_vocab_size(with_added_tokens=False)
    following = max([size, *(token_id + 1 for token_id in library.get_added_tokens_decoder())])
    if library.model.id_to_token(following) is None:
        return library
    whole = json.loads(library.to_str())
    vocab = whole["model"]["vocab"]
    taken = set(vocab.values())
    vocab |= {f"{NO_TEXT}{number}": number for number in range(max(taken)) if number not in taken}
    return _Library.from_str(json.dumps(whole))


def _find_around(library: _Library) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before a text, and behind it."""
    plain: list[int] = library.encode("a", add_special_tokens=False).ids
    full: list[int] = library.encode("a", add_special_tokens=True).ids
    count = len(full) - len(plain)
    starts = [start for start in range(count + 1) if full[start : start + len(plain)] == plain]
    return (tuple(full[: starts[0]]), tuple(full[starts[0] + len(plain) :])) if starts else ((), ())


def _mark_special(library: _Library, config: Mapping[str, Any]) -> None:
    """Tells the library of special tokens that only tokenizer_config.json knows; never makes a new id."""
    known = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
    contents = (text for text in special_contents(config) if text not in known)
    missing = [text for text in contents if library.token_to_id(text) is not None]
    library.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in missing])


def _decoder_state(library: _Library) -> bytes | None:
    decoder = library.decoder
    return None if decoder is None else bytes(decoder.__getstate__())
