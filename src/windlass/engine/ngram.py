"""Drafts from a sequence's own tokens: what followed the last time that it read as it does now."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

LONGEST_MATCH = 8
"""Longer matches count as this long."""

MAX_CANDIDATES = 8
"""How many earlier places are compared; of the longest matches the most recent one wins."""

INDEX_TOKENS = 4096
"""Tokens indexed in one step, so that a long prompt delays nobody."""

RATE = 0.1
"""Weight of one observation in the estimates of a sequence."""

TYPICAL_RATE = RATE / 8
"""Its weight in what later sequences begin with."""

PRIOR = (0.0, 0.0, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)
"""By length of the match: how likely the token that followed there comes again, before anything is known."""

LEAST_CHANCE = 0.02
"""A draft less likely than this is not worth a thought."""


class NgramDrafter:
    """Finds, in constant time per token, an earlier place that ends in the same tokens as the sequence does now.

    Every guess is compared with the token that came, drafted or not: its chances by length of the match are known
    without a draft being run. Owned by the engine thread.

    Args:
        token_ids: the sequence, a list that only ever grows.
        acceptance: by length of the match, how likely a guess is right; copied.
    """

    __slots__ = ("_acceptance", "_end", "_last", "_length", "_previous", "_start", "_token_ids")

    def __init__(self, token_ids: list[int], acceptance: Sequence[float] = PRIOR) -> None:
        self._token_ids = token_ids
        self._acceptance = list(acceptance)
        self._last: dict[int, int] = {}
        # By position: where the two tokens that end there stood before that; -1 for nowhere.
        self._previous = array("q", [-1])
        self._start = self._end = self._length = 0

    def find(self) -> int:
        """Look for the longest match and return its length: 2 to ``LONGEST_MATCH``, or 0 without one."""
        self._length = 0
        tokens = self._token_ids
        end = len(tokens)
        if end < 2 or not self._index(end - 1):
            return 0
        place = self._last.get(tokens[-2] << 32 | tokens[-1], -1)
        best = 0
        for _ in range(MAX_CANDIDATES):
            if place < 0:
                break
            length, longest = 2, min(LONGEST_MATCH, place + 1)
            while length < longest and tokens[place - length] == tokens[end - 1 - length]:
                length += 1
            if length > best:
                best, self._start = length, place + 1
                if length == LONGEST_MATCH:
                    break
            place = self._previous[place]
        self._length, self._end = best, end
        return best

    def chances(self, longest: int) -> list[float]:
        """How likely the first 1, 2 .. of at most ``longest`` guesses after the match are all right."""
        chances: list[float] = []
        chance = 1.0
        for length in range(self._length, self._length + longest):
            chance *= self._acceptance[min(length, LONGEST_MATCH)]
            if chance < LEAST_CHANCE:
                break
            chances.append(chance)
        return chances

    def guesses(self, count: int) -> list[int]:
        """The ``count`` tokens that came after the match; from the end of the sequence on, they repeat."""
        guesses = self._token_ids[self._start : self._start + count]
        period = len(guesses)
        while len(guesses) < count:
            guesses.append(guesses[-period])
        return guesses

    def learn(self, typical: list[float]) -> None:
        """Compare the guesses of the last ``find`` with the tokens that came since, here and in ``typical``."""
        if not self._length:
            return
        tokens = self._token_ids
        for offset in range(len(tokens) - self._end):
            length = min(self._length + offset, LONGEST_MATCH)
            right = tokens[self._start + offset] == tokens[self._end + offset]
            self._acceptance[length] += RATE * (right - self._acceptance[length])
            typical[length] += TYPICAL_RATE * (right - typical[length])
            if not right:
                break
        self._length = 0

    def _index(self, end: int) -> bool:
        """Note the pairs of tokens before position ``end``; False while there are too many for one step."""
        tokens, last, previous = self._token_ids, self._last, self._previous
        begin = len(previous)
        for position in range(begin, min(end, begin + INDEX_TOKENS)):
            pair = tokens[position - 1] << 32 | tokens[position]
            previous.append(last.get(pair, -1))
            last[pair] = position
        return len(previous) >= end
