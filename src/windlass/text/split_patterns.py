"""The regular expressions that tokenizers cut text with, as lists of simple steps.

Of the language of regular expressions only as much is known as these patterns use: alternatives of repeated sets of
characters, a set that must not follow, and groups of contractions such as ``(?i:'s|'t)``. What a set means is asked of
the library that uses the patterns (see library_unicode.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What the library's ByteLevel step cuts with."""

PROPERTIES = (r"\p{Lu}", r"\p{Ll}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{M}", r"\p{N}", r"\p{P}", r"\p{S}", r"\s")
"""Disjoint sets of characters, of which all others are made, but for the characters that those name themselves."""

DIGITS = "digits"
"""The set of characters that the library's Digits step cuts at; it knows another version of Unicode than patterns."""

_MOST = (1 << 32) - 1
_MOST_SETS = 32
_MOST_STEPS = 16
_MOST_FLEXIBLE = 3
_MOST_PATTERNS = 16

_SET = re.compile(r"\[\^?(?:[^\[\]\\&]|&(?!&)|\\[pP]\{(?:L[ultmo]?|[MNPSZ])\}|\\[srnt]|\\[^0-9A-Za-z])+\]")
_ONE = re.compile(r"\\[pP]\{(?:L[ultmo]?|[MNPSZ])\}|\\[sSrnt]|\\[^0-9A-Za-z]|[^\\\[\](){}.*+?^$|]")
_NOT_BEFORE = re.compile(r"\(\?!(" + _ONE.pattern + "|" + _SET.pattern + r")\)")
_CONTRACTIONS = re.compile(r"\((\?i|\?):((?:'(?:s|t|re|ve|m|ll|d)\|?)+)\)(\??)(?![?*+{])")
_COUNT = re.compile(r"([?*+])(\+?)(?![?*+{])|\{(\d{1,6})(,?)(\d{0,6})\}(?![?*+{])|(?![?*+{])")


class UnknownPatternError(ValueError):
    """A tokenizer does what is not known here."""


class Kind(IntEnum):
    """Kinds of steps; see csrc/text/splitter.h."""

    REPEAT = 0
    REPEAT_ONLY = 1
    NOT_BEFORE = 2
    ONE_OF = 3


class Step(NamedTuple):
    """A step of an alternative: ``choices`` are the alternatives of a ``ONE_OF``, each a list of sets."""

    kind: Kind
    charset: str = ""
    least: int = 1
    most: int = 1
    choices: tuple[tuple[str, ...], ...] = ()


class Cut(NamedTuple):
    """The alternatives of one pattern, and whether text that it does not match is dropped."""

    alternatives: list[list[Step]]
    drops: bool = False


def read_cuts(pre_tokenizer: object) -> list[Cut]:
    """The patterns of a ``pre_tokenizer`` of tokenizer.json, each of which cuts the pieces of the one before it.

    Raises:
        UnknownPatternError: it does something else than to cut, or does not end in GPT-2's alphabet of bytes.
    """
    steps = _flatten(pre_tokenizer)
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space") is not False:
        raise UnknownPatternError("not byte-level")
    cuts = [_cut(step) for step in steps[:-1]]
    return [*cuts, Cut(parse(GPT2))] if steps[-1].get("use_regex", True) else cuts


def _flatten(step: object) -> list[Mapping[str, Any]]:
    if not isinstance(step, Mapping):
        raise UnknownPatternError("no steps")
    if step.get("type") != "Sequence":
        return [step]
    return [inner for part in step["pretokenizers"] for inner in _flatten(part)]


def _cut(step: Mapping[str, Any]) -> Cut:
    if step.get("type") == "Split" and "Regex" in step["pattern"]:
        how = (step["behavior"], bool(step["invert"]))
        if how in (("Isolated", False), ("Removed", True)):
            return Cut(parse(step["pattern"]["Regex"]), drops=step["behavior"] == "Removed")
    if step.get("type") == "Digits":
        return Cut([[Step(Kind.REPEAT, DIGITS, most=1 if step["individual_digits"] else _MOST)]])
    raise UnknownPatternError(f"step {step.get('type')}")


def parse(pattern: str) -> list[list[Step]]:
    """The alternatives of a pattern.

    Raises:
        UnknownPatternError: it uses more of the language than is known.
    """
    alternatives: list[list[Step]] = []
    at = 0
    while at <= len(pattern):
        variants, at = _parse_alternative(pattern, at)
        for steps in variants:
            matches_something = any(step.least for step in steps if step.kind <= Kind.REPEAT_ONLY)
            flexible = [step for step in steps[:-1] if step.kind is Kind.REPEAT and step.least < step.most]
            if not matches_something or len(steps) > _MOST_STEPS or len(flexible) > _MOST_FLEXIBLE:
                raise UnknownPatternError(pattern)
        alternatives += variants
    return alternatives


def _parse_alternative(pattern: str, at: int) -> tuple[list[list[Step]], int]:
    """The alternatives that one with a group at its start stands for, and where the next one begins."""
    steps: list[Step] = []
    begins: list[list[Step]] = [[]]
    while at < len(pattern) and pattern[at] != "|":
        if steps and steps[-1].kind is Kind.ONE_OF:
            raise UnknownPatternError(pattern)  # it could be taken back
        if found := _CONTRACTIONS.match(pattern, at):
            choices = tuple(_charsets(text, either=found[1] == "?i") for text in found[2].split("|"))
            if found[3]:
                steps.append(Step(Kind.ONE_OF, choices=choices))
            elif steps or begins != [[]]:
                raise UnknownPatternError(pattern)  # what comes before it could be taken back
            else:
                begins = [[Step(Kind.REPEAT, charset) for charset in choice] for choice in choices]
            at = found.end()
        elif found := _NOT_BEFORE.match(pattern, at):
            steps.append(Step(Kind.NOT_BEFORE, found[1]))
            at = found.end()
        else:
            step, at = _parse_repeat(pattern, at)
            steps.append(step)
    return [[*begin, *steps] for begin in begins], at + 1


def _parse_repeat(pattern: str, at: int) -> tuple[Step, int]:
    found = _SET.match(pattern, at) or _ONE.match(pattern, at)
    count = _COUNT.match(pattern, found.end()) if found else None
    if found is None or count is None:
        raise UnknownPatternError(pattern)
    least = most = 1
    if count[1]:
        least, most = int(count[1] == "+"), 1 if count[1] == "?" else _MOST
    elif count[3]:
        least = int(count[3])
        most = int(count[5]) if count[5] else _MOST if count[4] else least
        if least > most or most == 0:
            raise UnknownPatternError(pattern)
    return Step(Kind.REPEAT_ONLY if count[2] else Kind.REPEAT, found[0], least, most), count.end()


def _charsets(text: str, *, either: bool) -> tuple[str, ...]:
    """The sets of the characters of a contraction; ``either`` case of its letters."""
    if not text:
        raise UnknownPatternError("an empty contraction")
    return tuple(f"(?i:{letter})" if either and letter != "'" else letter for letter in text)


class PatternTables(NamedTuple):
    """Patterns as the numbers of csrc/text/splitter.h, and the sets of characters that these number."""

    steps: list[int]
    alternatives: list[int]
    patterns: list[int]
    charsets: list[str]


def tables_of(cuts: list[Cut]) -> PatternTables:
    """The tables of some patterns.

    Raises:
        UnknownPatternError: they use more of the language than is known.
    """
    numbers: dict[str, int] = {}
    steps: list[int] = []
    alternatives: list[int] = []
    patterns: list[int] = []

    def number(charset: str) -> int:
        return numbers.setdefault(charset, len(numbers))

    def add_all(some: list[list[Step]]) -> int:
        """Add alternatives that stand one after the other; their choices come first."""
        written = [[write(step) for step in one] for one in some]
        first = len(alternatives) // 2
        for one in written:
            alternatives.extend((len(steps) // 4, len(one)))
            for step in one:
                steps.extend(step)
        return first

    def write(step: Step) -> tuple[int, int, int, int]:
        if step.kind is Kind.ONE_OF:
            first = add_all([[Step(Kind.REPEAT, charset) for charset in choice] for choice in step.choices])
            return step.kind, 0, first, len(step.choices)
        return step.kind, number(step.charset), step.least, step.most

    for cut in cuts:
        patterns += (add_all(cut.alternatives), len(cut.alternatives), int(cut.drops))
    if len(numbers) > _MOST_SETS or len(cuts) > _MOST_PATTERNS:
        raise UnknownPatternError("too many sets or patterns")
    return PatternTables(steps, alternatives, patterns, list(numbers))
