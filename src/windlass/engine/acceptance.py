"""How good a draft model's guesses of one sequence are, and when to try it again after they were not."""

from __future__ import annotations

RATE = 0.07
"""Weight of the latest guess in the estimate, or more while there were few."""

PRIOR_WEIGHT = 2
"""How many guesses the estimate that a sequence begins with counts for."""

GOOD = 0.5
"""Guesses that are right more often than this pay if any do."""

SHORTEST_PAUSE, LONGEST_PAUSE = 8, 32
"""Steps without drafts after they did not pay; twice as many each time."""


class Acceptance:
    """What is known of the guesses of one sequence. Owned by the engine thread.

    Where no draft pays there may be a trial, one draft all the same: at first, after each pause, and after a trial that
    was right; but none, and no pause either, while the guesses are good, so that only the step costs too much.
    """

    __slots__ = ("_next_pause", "_num_noted", "_pause", "_trial", "chance")

    def __init__(self, chance: float) -> None:
        self.chance = chance
        """How likely a guess is right, when all before it in its step are."""
        self._num_noted = 0
        self._trial = True
        self._pause, self._next_pause = 0, SHORTEST_PAUSE

    def note(self, *, right: bool) -> None:
        """A guess, after others that were right, was right or wrong."""
        self._num_noted += 1
        self.chance += max(RATE, 1 / (self._num_noted + PRIOR_WEIGHT)) * (right - self.chance)
        if right:
            self._trial, self._next_pause = True, SHORTEST_PAUSE

    def waits(self) -> bool:
        """True for a step of a pause; to be asked once in each step."""
        if not self._pause:
            return False
        self._pause -= 1
        self._trial = not self._pause
        return self._pause > 0

    def does_not_pay(self) -> int:
        """Return how many drafts there are in a step in which none pays: one, or none and a pause may begin."""
        if self.chance > GOOD:
            return 0
        if self._trial:
            self._trial = False
            return 1
        self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, LONGEST_PAUSE)
        return 0
