"""What a step costs, by its number of tokens, as measured on this machine."""

from __future__ import annotations

from itertools import pairwise

MOST_FALL, MOST_RISE = 0.8, 1.05
"""What one measurement changes at most: steps are slow by chance, never fast."""

FORGET_STEPS = 256
"""How many later measurements make one too old to believe."""

FORGET_FIRST_STEPS = 16
"""The same for the first of its number, which may have been slow by chance: it is soon measured again."""

ASSUMED_SLOPE = 0.03
"""What one more token costs, as part of the step without it, before it was tried: little, so that it is tried."""


class StepCosts:
    """Seconds of a step by number of tokens. Owned by the engine thread."""

    def __init__(self) -> None:
        self._measured: dict[int, tuple[float, int]] = {}
        self._once: set[int] = set()
        self._count = 0

    def note(self, num_tokens: int, seconds: float) -> None:
        """A step of ``num_tokens`` took ``seconds``."""
        self._count += 1
        last, at = self._measured.get(num_tokens, (seconds, -FORGET_STEPS))
        if self._count - at >= FORGET_STEPS:
            self._once.add(num_tokens)
        elif num_tokens in self._once:
            self._once.remove(num_tokens)
            seconds = min(last, seconds)
        else:
            seconds = min(max(seconds, last * MOST_FALL), last * MOST_RISE)
        self._measured[num_tokens] = (seconds, self._count)

    def seconds(self, num_tokens: int) -> float | None:
        """What a step of ``num_tokens`` takes; None while it was not measured lately."""
        seconds, at = self._measured.get(num_tokens, (None, 0))
        limit = FORGET_FIRST_STEPS if num_tokens in self._once else FORGET_STEPS
        return seconds if self._count - at < limit else None

    def near(self, num_tokens: int) -> float | None:
        """What a step of ``num_tokens`` takes, or of the number nearest to it that was measured lately."""
        known = [number for number in self._measured if self.seconds(number) is not None]
        return self.seconds(min(known, key=lambda number: abs(number - num_tokens))) if known else None

    def ratios(self, num_tokens: int, most: int) -> list[float] | None:
        """What steps of ``num_tokens`` + 0, 1 .. ``most`` tokens cost, as multiples of the first; never falling.

        Between measured numbers, on a parabola that begins flat, so that what may be cheap is tried; beyond them, on a
        line from the first through the last, and no further than to twice the last: a step is not made much larger
        than any that was tried. None while ``num_tokens`` itself was not measured lately.
        """
        first = self.seconds(num_tokens)
        if not first:
            return None
        points = [(0, 1.0)]
        for more in range(1, most + 1):
            seconds = self.seconds(num_tokens + more)
            if seconds is not None:
                points.append((more, max(seconds / first, points[-1][1])))
        more, ratio = points[-1]
        most = min(most, num_tokens + 2 * more)
        if more < most:
            slope = (ratio - 1.0) / more if more else ASSUMED_SLOPE
            points += [(beyond, ratio + slope * (beyond - more)) for beyond in range(more + 1, most + 1)]
        ratios = [1.0]
        for (begin, low), (end, high) in pairwise(points):
            width = end - begin
            ratios += [low + (high - low) * (i / width) ** 2 for i in range(1, width + 1)]
        return ratios
