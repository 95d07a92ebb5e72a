"""The ids of named tokens in the metadata of GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from windlass.errors import LoadError

_PREFIX = "tokenizer.ggml."
_NONE = 0xFFFFFFFF
"""An id that stands for none."""


def read_token_id(path: Path, metadata: Mapping[str, Any], key: str, num_tokens: int) -> int | None:
    """The id that ``tokenizer.ggml.<key>`` gives, or None.

    Raises:
        LoadError: it is not in the vocabulary of the GGUF file ``path``, which has ``num_tokens``.
    """
    value = metadata.get(_PREFIX + key)
    if value is None or value == _NONE:
        return None
    if type(value) is not int or not 0 <= value < num_tokens:
        raise LoadError(path, f"{_PREFIX}{key} is {value!r}, which is not one of {num_tokens} tokens")
    return value


def read_stop_ids(path: Path, metadata: Mapping[str, Any], num_tokens: int) -> frozenset[int]:
    """The ids of the tokens that end an answer.

    Raises:
        LoadError: one is not in the vocabulary.
    """
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = (read_token_id(path, metadata, key, num_tokens) for key in keys)
    return frozenset(token_id for token_id in ids if token_id is not None)
