"""What the ``tokenizers`` library knows of Unicode, learnt by asking it: its version of Unicode is not Python's."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tokenizers import Regex, normalizers, pre_tokenizers

from windlass.text.split_patterns import DIGITS, PROPERTIES, UnknownPatternError

_NUM_CHARACTERS = 0x110000
_CHUNK = 0x2000
_ASSIGNED = (range(0xD800), range(0xE000, 0x40000), range(0xE0000, 0xF0000))
_ALIKE = (0xD800, 0x40000, 0xF0000)  # what is not assigned, private or no character is alike as far as it goes
_SYLLABLES = range(0xAC00, 0xD7A4)  # of Hangul: worked out where they are needed, as are their letters
_HANGUL_SECONDS = (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))

# See csrc/text/characters.h.
_UNSETTLED = 1
_DECOMPOSES = 2
_JOINS_BEFORE = 4

_LOW = "\u0334"  # combines, of the first class
_HIGH = "\u0345"  # combines, of the last class


class NormalTables(NamedTuple):
    """Normalization form C (UAX #15); see csrc/text/normalizer.h. Characters are by their code points."""

    combining: Mapping[int, int]
    """The class of each character that combines, numbered from 1 in Unicode's order."""
    decompositions: Mapping[int, str]
    """What characters decompose into in the end."""
    compositions: Mapping[tuple[int, int], int]
    """What two characters become."""
    flags: Mapping[int, int]
    """How a character behaves, if it is not 0: see csrc/text/characters.h."""


class CharacterTables(NamedTuple):
    """Kinds of characters; see csrc/text/characters.h."""

    blocks: bytes
    kinds: bytes
    sets: array[int]
    combining: bytes
    normal: bytes


NO_NORMALIZATION = NormalTables({}, {}, {}, {})


def character_tables(charsets: Sequence[str], normal: NormalTables) -> CharacterTables:
    """Which characters are in which sets, and how they behave under normalization.

    Args:
        charsets: up to 32 sets as regular expressions write them, made of ``PROPERTIES`` and single characters.

    Raises:
        UnknownPatternError: there are too many kinds of characters.
    """
    starts = sorted({*_stretches(digits=DIGITS in charsets), *range(129), *_ALIKE, *_named(charsets)})
    members = _members(charsets, [start for start in starts if start not in _ALIKE[:1]])
    kinds: dict[tuple[int, int, int], int] = {}
    of_characters = bytearray(_NUM_CHARACTERS)

    def kind(sets: int, code: int | None = None) -> int:
        key = (sets, 0, 0) if code is None else (sets, normal.combining.get(code, 0), normal.flags.get(code, 0))
        number = kinds.setdefault(key, len(kinds))
        if number > 255:
            raise UnknownPatternError("too many kinds of characters")
        return number

    special = sorted(normal.flags)
    at = 0
    for start, end in zip(starts, [*starts[1:], _NUM_CHARACTERS], strict=True):
        sets = members.get(start, 0)
        of_characters[start:end] = bytes([kind(sets)]) * (end - start)
        while at < len(special) and special[at] < end:
            of_characters[special[at]] = kind(sets, special[at])
            at += 1
    blocks: dict[bytes, int] = {}
    index = bytes(
        blocks.setdefault(bytes(of_characters[start : start + 256]), len(blocks))
        for start in range(0, _NUM_CHARACTERS, 256)
    )
    return CharacterTables(
        index,
        b"".join(blocks),
        array("I", [sets for sets, _, _ in kinds]),
        bytes(combining for _, combining, _ in kinds),
        bytes(flags for _, _, flags in kinds),
    )


def _chunks() -> Iterator[tuple[int, str]]:
    """All assigned characters: the first of each chunk, and its text."""
    for assigned in _ASSIGNED:
        for first in range(assigned.start, assigned.stop, _CHUNK):
            yield first, "".join(map(chr, range(first, min(first + _CHUNK, assigned.stop))))


def _stretches(*, digits: bool) -> Iterator[int]:
    """Where stretches of characters begin that no property tells apart, and neither ``DIGITS``."""
    cuts: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex("|".join(f"{one}+" for one in PROPERTIES)), "isolated")
    ]
    if digits:
        cuts.append(pre_tokenizers.Digits(individual_digits=False))
    for first, text in _chunks():
        for cut in cuts:
            for _, (start, _) in cut.pre_tokenize_str(text):
                yield first + start


def _named(charsets: Iterable[str]) -> Iterator[int]:
    """Characters beyond ASCII that sets name themselves, which may be ends of ranges, and the ones after them."""
    for code in map(ord, "".join(charsets)):
        if code > 127:
            yield from (code, code + 1)
    yield from (0x17F, 0x180, 0x212A, 0x212B)  # the other cases of s and k


def _members(charsets: Sequence[str], codes: Sequence[int]) -> dict[int, int]:
    """In which sets each of the characters is, one bit per set."""
    members = dict.fromkeys(codes, 0)
    text = "".join(map(chr, codes))
    for number, charset in enumerate(charsets):
        if charset == DIGITS:
            apart = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str("".join(f"{one}\n" for one in text))
            found = [at // 2 for one, (at, _) in apart if "\n" not in one]
        else:
            only = pre_tokenizers.Split(Regex(charset), "removed", invert=True)
            found = [at for _, (at, _) in only.pre_tokenize_str(text)]
        for at in found:
            members[codes[at]] |= 1 << number
    return members


def normal_tables() -> NormalTables:
    """The library's normalization form C."""
    decompose, compose = normalizers.NFD().normalize_str, normalizers.NFC().normalize_str
    decompositions = dict(_decompositions(decompose))
    composed = dict(zip(decompositions, _each(compose, map(chr, decompositions)), strict=True))
    combining = _combining_classes(decompose, decompositions)
    compositions: dict[tuple[int, int], int] = {}
    for code, parts in decompositions.items():
        if composed[code] == chr(code) and len(parts) > 1:
            first = compose(parts[:-1])
            if len(first) != 1 or compose(first + parts[-1]) != chr(code):
                raise UnknownPatternError("a composition is not made of two")
            compositions[ord(first), ord(parts[-1])] = code
    seconds = {second for _, second in compositions}.union(_HANGUL_SECONDS)
    flags: dict[int, int] = {}
    for code in {*combining, *decompositions, *seconds}:
        settled = code not in combining and code not in seconds and composed.get(code, chr(code)) == chr(code)
        flags[code] = (
            _UNSETTLED * (not settled) + _DECOMPOSES * (code in decompositions) + _JOINS_BEFORE * (code in seconds)
        )
    return NormalTables(combining, decompositions, compositions, flags)


def _each(change: Callable[[str], str], texts: Iterable[str]) -> list[str]:
    """What becomes of each of the texts."""
    return change("\n".join(texts)).split("\n")


def _decompositions(decompose: Callable[[str], str]) -> Iterator[tuple[int, str]]:
    for _, text in _chunks():
        if decompose(text) == text:
            continue
        plain = [character for character in text if character != "\n" and ord(character) not in _SYLLABLES]
        for character, parts in zip(plain, _each(decompose, plain), strict=True):
            if parts != character:
                yield ord(character), parts


def _combining_classes(decompose: Callable[[str], str], decompositions: Mapping[int, str]) -> dict[int, int]:
    """Finds what combines by what changes places, and the classes by what keeps its order among its own."""
    marks = pre_tokenizers.Split(Regex(r"\p{M}"), "removed", invert=True)
    plain = [
        mark
        for first, text in _chunks()
        for mark, (at, _) in marks.pre_tokenize_str(text)
        if first + at not in decompositions
    ]
    lower = _each(decompose, (_HIGH + mark for mark in plain))
    higher = _each(decompose, (mark + _LOW for mark in plain))
    found = [
        mark for mark, low, high in zip(plain, lower, higher, strict=True) if low != _HIGH + mark or high != mark + _LOW
    ]
    classes: dict[int, int] = {}
    number, apart = 1, 0
    counts: dict[str, int] = {}
    for one, other in zip(decompose("".join(found)), decompose("".join(reversed(found))), strict=True):
        classes[ord(one)] = number
        # A class is over when the one and the other order have had the same characters.
        for mark, step in ((one, 1), (other, -1)):
            before = counts.get(mark, 0)
            counts[mark] = before + step
            apart += abs(before + step) - abs(before)
        number += apart == 0
    return classes
