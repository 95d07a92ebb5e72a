"""Regular expressions out of files that nobody vouches for, matched with names in a time that cannot explode.

Python's own ``re`` tries one way after the other, of which a few characters can ask for more than a lifetime has time.
Here all ways are followed at once: each piece of a pattern turns the set of places where a match may have come to into
the next such set (Thompson, 1968). What would need more than that, such as a reference to a group, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

_MAX_LENGTH = 4096
_MAX_DEPTH = 50
_MAX_COUNT = 1000

Places: TypeAlias = frozenset[int]
_Piece: TypeAlias = Callable[[str, Places], Places]
"""From the places in a name where it may begin to those where it may end."""

_GROUP = re.compile(r"\((\?:|\?P<\w+>|\?=|\?!)?")
_COUNT = re.compile(r"\{(\d+)(,(\d*))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)
_SET = re.compile(r"\[|--|&&|~~|\|\|")
"""What ``re`` warns of in a class: it may come to mean something."""
_WORD = re.compile(r"\w")


class NamePattern:
    """A regular expression in the syntax of ``re``, without look-behind, references, flags and possessive repetitions.

    Raises:
        ValueError: it is none, or has one of these.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > _MAX_LENGTH:
            raise ValueError(f"it is longer than {_MAX_LENGTH} characters")
        parser = _Parser(pattern)
        self._piece = parser.choice(0)
        if parser.at < len(pattern):
            raise ValueError("a ) without its (")

    def matches(self, name: str) -> bool:
        """Whether the whole of ``name`` matches, as ``re.fullmatch`` would say."""
        return len(name) in self._piece(name, frozenset((0,)))

    def matches_end(self, name: str) -> bool:
        """Whether ``name``, or what stands in it behind one of its dots, matches as a whole."""
        begins = frozenset((0, *(i + 1 for i, character in enumerate(name) if character == ".")))
        return len(name) in self._piece(name, begins)


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self.at = 0

    def choice(self, depth: int) -> _Piece:
        """Everything up to the end of the group, or of the pattern."""
        if depth > _MAX_DEPTH:
            raise ValueError("its groups are nested too deeply")
        choices = [self._sequence(depth)]
        while self._takes("|"):
            choices.append(self._sequence(depth))
        return choices[0] if len(choices) == 1 else _any_of(choices)

    def _sequence(self, depth: int) -> _Piece:
        pieces: list[_Piece] = []
        while self.at < len(self._pattern) and self._pattern[self.at] not in "|)":
            pieces.append(self._repeated(self._one(depth)))
        return _all_of(pieces)

    def _one(self, depth: int) -> _Piece:
        group = _GROUP.match(self._pattern, self.at)
        if group is not None:
            return self._group(group, depth)
        matched = _CLASS.match(self._pattern, self.at)
        if matched is not None:
            self.at = matched.end()
            if _SET.search(re.sub(r"\\.", "", matched[0][1:-1], flags=re.DOTALL)):
                raise ValueError(f"{matched[0][:20]!r} is not supported")
            return _character(matched[0])
        character = self._pattern[self.at]
        self.at += 1
        if character == "\\":
            return self._escaped()
        if character in "^$":
            return _at_begin if character == "^" else _at_end
        if character in "*+?{[":
            raise ValueError(f"{character!r} stands where it means nothing")
        return _character("." if character == "." else re.escape(character))

    def _group(self, group: re.Match[str], depth: int) -> _Piece:
        self.at = group.end()
        if self._takes("?"):
            raise ValueError(f"{self._pattern[self.at - 2 : self.at + 2]!r} is not supported")
        inner = self.choice(depth + 1)
        if not self._takes(")"):
            raise ValueError("a ( without its )")
        return _ahead(inner, wanted=group[1] == "?=") if group[1] in ("?=", "?!") else inner

    def _escaped(self) -> _Piece:
        if self.at == len(self._pattern):
            raise ValueError("it ends with a backslash")
        character = self._pattern[self.at]
        self.at += 1
        if character in "bB":
            return _at_edge(wanted=character == "b")
        if character in "AZ":
            return _at_begin if character == "A" else _at_end
        if character.isalnum() and character not in "dDwWsS":
            raise ValueError(f"\\{character} is not supported")
        return _character("\\" + character)

    def _repeated(self, piece: _Piece) -> _Piece:
        least, most = self._counts()
        if least == most == 1:
            return piece
        self._takes("?")  # the order in which ways are tried makes no difference
        if self._pattern[self.at : self.at + 1] in ("*", "+", "?", "{"):
            raise ValueError("a repetition of a repetition is not supported")
        return _repeat(piece, least, most)

    def _counts(self) -> tuple[int, int | None]:
        for sign, least, most in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self._takes(sign):
                return least, most
        count = _COUNT.match(self._pattern, self.at)
        if count is None:
            return 1, 1
        self.at = count.end()
        if any(len(digits) > 4 or int(digits or 0) > _MAX_COUNT for digits in (count[1], count[3] or "")):
            raise ValueError(f"more than {_MAX_COUNT} repetitions")
        least = int(count[1])
        return least, least if count[2] is None else int(count[3]) if count[3] else None

    def _takes(self, sign: str) -> bool:
        found = self._pattern.startswith(sign, self.at)
        self.at += found
        return found


def _character(text: str) -> _Piece:
    try:
        fits = re.compile(text).fullmatch
    except re.error as error:
        raise ValueError(str(error)) from None

    def follow(name: str, places: Places) -> Places:
        return frozenset(p + 1 for p in places if p < len(name) and fits(name[p]))

    return follow


def _all_of(pieces: Sequence[_Piece]) -> _Piece:
    def follow(name: str, places: Places) -> Places:
        for piece in pieces:
            if not places:
                break
            places = piece(name, places)
        return places

    return follow


def _any_of(pieces: Sequence[_Piece]) -> _Piece:
    return lambda name, places: frozenset().union(*(piece(name, places) for piece in pieces))


def _repeat(piece: _Piece, least: int, most: int | None) -> _Piece:
    def follow(name: str, places: Places) -> Places:
        for _ in range(least):
            before, places = places, piece(name, places)
            if places == before:
                break
        found, times = places, least
        while places and (most is None or times < most):
            places = piece(name, places) - found
            found |= places
            times += 1
        return found

    return follow


def _ahead(piece: _Piece, *, wanted: bool) -> _Piece:
    return lambda name, places: frozenset(p for p in places if bool(piece(name, frozenset((p,)))) == wanted)


def _at_edge(*, wanted: bool) -> _Piece:
    def is_edge(name: str, place: int) -> bool:
        before, after = name[place - 1 : place] if place else "", name[place : place + 1]
        return (_WORD.match(before) is None) != (_WORD.match(after) is None)

    return lambda name, places: frozenset(p for p in places if is_edge(name, p) == wanted)


def _at_begin(_name: str, places: Places) -> Places:
    return places & {0}


def _at_end(name: str, places: Places) -> Places:
    return places & {len(name)}
