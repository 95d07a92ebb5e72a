"""Keeps special tokens out of text that comes from outside.

A template joins its own special tokens with the users' text into one string, so a user who writes ``<|im_end|>`` could
end a turn. Before rendering, every character in the users' strings that could begin a special token is followed by
``MARK``, a noncharacter; after rendering, ``Tokenizer.encode_template`` recognises only unbroken special tokens, which
only the template can have written, and removes the marks. Marking the first character rather than whole occurrences
also stops tokens put together from two strings, or by a template that removes a word from the middle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from windlass.errors import InvalidRequestError
from windlass.text.tokenizer_facts import MARK

_TAG = re.compile(r"<[^<>\n]{1,64}>")
_MAX_DEPTH = 64


def make_guard(specials: Iterable[str], template: str = "") -> Callable[[str], str]:
    """A function that breaks every special token in a text from outside.

    Args:
        specials: how the tokenizer's special tokens are written.
        template: the template's source. Tags such as ``</think>`` that it mentions and that are not special stay
            whole, since templates look for them in the users' text.
    """
    specials = [text for text in specials if text]
    if not specials:
        return lambda text: text
    # A letter or space may begin a special token of some odd tokenizer, but marking all of these would break the
    # template's own comparisons: of such tokens only whole occurrences are marked.
    signs = {text[0] for text in specials if not (text[0].isalnum() or text[0].isspace())}
    words = {text for text in specials if text[0] not in signs}
    tags = {
        tag
        for tag in _TAG.findall(template)
        if not any(special.startswith(tag) for special in specials) and not signs & set(tag[1:])
    }
    breaks = [*map(re.escape, sorted(words, key=len, reverse=True)), *map(re.escape, sorted(signs))]
    keeps = [re.escape(tag) for tag in sorted(tags, key=len, reverse=True)]
    pattern = re.compile("|".join([*(f"(?:{keep})" for keep in keeps), f"(?P<break>{'|'.join(breaks)})"]))

    def replacement(match: re.Match[str]) -> str:
        text = match[0]
        return text if match["break"] is None else text[0] + MARK + text[1:]

    return lambda text: pattern.sub(replacement, text)


def guard_value(value: Any, guard: Callable[[str], str], *, param: str) -> Any:
    """A deep copy of a JSON value, keys included, with ``guard`` applied to its strings.

    Args:
        value: a JSON value; tuples and other mappings are taken for lists and objects.
        guard: from :func:`make_guard`.
        param: the request's argument that it belongs to, for the error.

    Raises:
        InvalidRequestError: not a JSON value, or nested deeper than 64 levels.
    """
    return _guard_value(value, guard, param, _MAX_DEPTH)


def _guard_value(value: Any, guard: Callable[[str], str], param: str, depth: int) -> Any:
    if isinstance(value, str):
        return guard(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth == 0:
        raise InvalidRequestError(f"{param} is nested deeper than {_MAX_DEPTH} levels", param=param)
    if isinstance(value, Mapping):
        return {guard(str(key)): _guard_value(item, guard, param, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_guard_value(item, guard, param, depth - 1) for item in value]
    raise InvalidRequestError(f"{param} must hold JSON values, not a {type(value).__name__}", param=param)
