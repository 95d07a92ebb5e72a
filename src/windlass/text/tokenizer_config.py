"""What stands beside a vocabulary: tokenizer_config.json, special_tokens_map.json and added_tokens.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from windlass.errors import LoadError
from windlass.json_files import read_json_object

MAX_TOKENS = 1 << 20
"""No vocabulary in use comes near."""

MAX_TOKEN_LENGTH = 512
"""No token in use comes near."""

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredToken:
    """A token that stands outside the vocabulary's own file; the flags are those of tokenizer.json."""

    token_id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True

    def to_json(self) -> dict[str, Any]:
        """As an entry of ``added_tokens`` in tokenizer.json."""
        return {"id": self.token_id, "content": self.content, **{flag: getattr(self, flag) for flag in _FLAGS}}


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, with names that only the older special_tokens_map.json gives.

    Raises:
        LoadError: one of them cannot be read.
    """
    config = read_json_object(directory / "tokenizer_config.json", missing_ok=True)
    older = read_json_object(directory / "special_tokens_map.json", missing_ok=True)
    return {**older, **config}


def token_content(token: object) -> str | None:
    """How a token is written that is given as a string or as an object with its flags; None for anything else."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def named_special_tokens(config: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """The special tokens that have a name, such as ``bos_token``, as chat templates see them."""
    named: dict[str, str | list[str]] = {}
    for name in _NAMED:
        if (content := token_content(config.get(name))) is not None:
            named[name] = content
    additional = config.get("additional_special_tokens") or config.get("extra_special_tokens")
    if isinstance(additional, Mapping):  # newer files name the extra tokens
        named.update({str(name): content for name, token in additional.items() if (content := token_content(token))})
    elif isinstance(additional, list):
        contents = [content for token in additional if (content := token_content(token)) is not None]
        if contents:
            named["additional_special_tokens"] = contents
    return named


def special_contents(config: Mapping[str, Any]) -> list[str]:
    """How the tokens are written that ``config`` calls special, by name or by flag."""
    named = named_special_tokens(config)
    contents = [text for value in named.values() for text in ([value] if isinstance(value, str) else value)]
    declared = config.get("added_tokens_decoder")
    if isinstance(declared, Mapping):
        special = [token for token in declared.values() if isinstance(token, Mapping) and token.get("special") is True]
        contents += [content for token in special if (content := token_content(token)) is not None]
    return list(dict.fromkeys(contents))


def declared_tokens(directory: Path, config: Mapping[str, Any]) -> list[DeclaredToken]:
    """The tokens of ``added_tokens_decoder`` in tokenizer_config.json and of added_tokens.json, by their ids.

    added_tokens.json knows no flags: its tokens are special, as those of GPT-2's family are.

    Raises:
        LoadError: an id is not one, or two tokens share an id or a text.
    """
    path = directory / "tokenizer_config.json"
    found: dict[int, DeclaredToken] = {}
    decoder = config.get("added_tokens_decoder")
    for key, token in (decoder if isinstance(decoder, Mapping) else {}).items():
        content = token_content(token)
        if content is None or not isinstance(token, Mapping):
            raise LoadError(path, f"added_tokens_decoder[{key!r}] must be an object with the token's content")
        token_id = _token_id(int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else key, path)
        flags = {flag: token[flag] for flag in _FLAGS if isinstance(token.get(flag), bool)}
        found[token_id] = DeclaredToken(token_id=token_id, content=content, **{"special": False, **flags})
    path = directory / "added_tokens.json"
    for content, value in read_json_object(path, missing_ok=True).items():
        token_id = _token_id(value, path)
        known = found.setdefault(token_id, DeclaredToken(token_id=token_id, content=content))
        if known.content != content:
            raise LoadError(path, f"token {content!r} has id {token_id}, which is that of {known.content!r}")
    tokens = [found[token_id] for token_id in sorted(found)]
    texts = {token.content: token.token_id for token in tokens}
    for token in tokens:
        if texts[token.content] != token.token_id:
            raise LoadError(path, f"token {token.content!r} has two ids, {token.token_id} and {texts[token.content]}")
    return tokens


def _token_id(value: object, path: Path) -> int:
    if type(value) is not int or not 0 <= value < MAX_TOKENS:
        raise LoadError(path, f"{value!r} is not the id of a token; ids are 0 to {MAX_TOKENS - 1}")
    return value
