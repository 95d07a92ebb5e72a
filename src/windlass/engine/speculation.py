"""Speculation: tokens guessed ahead run in the same step, and stand while the model draws the same ones.

A draft is accepted while it equals the token that is drawn from the model's logits at its position with that
position's noise. So the tokens are those that come without speculation; only the number of steps differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, log1p
from time import perf_counter
from typing import Protocol

from windlass.engine.costs import StepCosts
from windlass.engine.ngram import PRIOR, NgramDrafter
from windlass.engine.request import Request
from windlass.engine.scheduler import Chunk, Scheduler

LONGEST_DRAFT = 16
"""Most drafts of one sequence when their number adapts."""

MOST_DRAFTS = 32
"""Most drafts of one step when their number adapts."""

MARGIN = 0.05
"""The speedup (its logarithm) that is not worth the trouble."""

MOST_SLOWED = 0.1
"""How much slower (its logarithm) a sequence may become for the sake of others."""

SHARE = 0.01
"""Part of the time that may go into looks that lead to no draft; with a small model that means rare ones."""

MOST_RARE = 50
"""Every so many steps there is a look all the same."""


class Speculator(Protocol):
    """Gives the chunks of each step their drafts. Owned by the engine thread."""

    def draft(self, chunks: Sequence[Chunk], scheduler: Scheduler) -> list[Chunk]:
        """Return the chunks of the next step, some with drafts, for which ``scheduler`` has given pages.

        Raises:
            StepCancelledError: the step is to be scheduled again.
        """
        ...

    def learn(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """The step that ran ``chunks`` took ``seconds``, and its tokens are with their requests."""
        ...


def most_drafts(chunk: Chunk, longest: int) -> int:
    """How many drafts, at most ``longest``, ``chunk`` has a use for: its request's last token is never one."""
    request = chunk.request
    return max(min(longest, request.max_tokens - request.num_generated - 1), 0) if chunk.completes else 0


def with_drafts(chunk: Chunk, drafts: Sequence[int]) -> Chunk:
    """Return ``chunk`` with ``drafts``, up to the first that would end its request."""
    stops = chunk.request.stop_token_ids
    for count, token_id in enumerate(drafts):
        if token_id in stops:
            drafts = drafts[:count]
            break
    return chunk._replace(drafts=tuple(drafts))


def only_decodes(chunks: Sequence[Chunk]) -> bool:
    """True for a step of one token each, drafts aside."""
    return all(chunk.num_tokens == 1 for chunk in chunks)


def worth_most(
    gains: Sequence[tuple[float, int]], costs: Sequence[float], num_sequences: int, most_slowed: float
) -> list[int]:
    """How many drafts of each sequence make a step worth most.

    Worth is the sum, over the sequences, of the logarithm of their speed: tokens expected by the step's seconds. So
    drafts end where a larger step costs more than they bring.

    Args:
        gains: what one more draft adds to the logarithm of the tokens expected, and of which sequence; largest first.
        costs: what the step costs with the first 0, 1, 2 .. of them, as a multiple of its cost without.
        most_slowed: how much slower (its logarithm) a sequence may become, whatever it brings to others.
    """
    gained, total = [0.0] * num_sequences, 0.0
    best, taken = MARGIN, 0
    for more, ((gain, number), cost) in enumerate(zip(gains, costs[1:], strict=False), start=1):
        gained[number] += gain
        total += gain
        slowed = log(cost)
        worth = total - num_sequences * slowed
        if worth > best:
            if slowed - min(gained) <= most_slowed:
                best, taken = worth, more
        elif worth < best - 10 * MARGIN:
            break
    counts = [0] * num_sequences
    for _, number in gains[:taken]:
        counts[number] += 1
    return counts


class NgramSpeculator:
    """Drafts what followed earlier in the same sequence (prompt lookup); see ``NgramDrafter``.

    Args:
        length: drafts for each sequence, whenever there is a match; 0 drafts as many as promise to pay, by what the
            guesses of this sequence were worth so far and what a step of so many tokens costs here.
    """

    def __init__(self, length: int = 0) -> None:
        self._length = length
        self._costs = StepCosts()
        self._typical = list(PRIOR)
        self._time_left = 0.0
        self._look_seconds = 0.0

    def draft(self, chunks: Sequence[Chunk], scheduler: Scheduler) -> list[Chunk]:
        """See ``Speculator``."""
        if self._time_left < 0.0:
            return list(chunks)
        began = perf_counter()
        room = scheduler.max_tokens - sum(chunk.num_tokens for chunk in chunks)
        counts = self._fixed(chunks) if self._length else self._worthwhile(chunks, min(room, MOST_DRAFTS))
        result = []
        for chunk, wanted in zip(chunks, counts, strict=True):
            count = scheduler.reserve_drafts(chunk, min(wanted, room)) if wanted else 0
            room -= count
            result.append(with_drafts(chunk, self._drafter(chunk.request).guesses(count)) if count else chunk)
        self._look_seconds = perf_counter() - began
        return result

    def learn(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """See ``Speculator``."""
        if self._time_left < 0.0:
            self._time_left += SHARE * seconds
            return
        if self._length or not only_decodes(chunks):
            return
        learn_began = perf_counter()
        for chunk in chunks:
            if chunk.request.drafter is not None:
                chunk.request.drafter.learn(self._typical)
        num_drafts = sum(len(chunk.drafts) for chunk in chunks)
        self._costs.note(len(chunks) + num_drafts, seconds)
        if not num_drafts:
            spent = self._look_seconds + perf_counter() - learn_began
            self._time_left = max(SHARE * seconds - spent, -MOST_RARE * SHARE * seconds)

    def _fixed(self, chunks: Sequence[Chunk]) -> list[int]:
        counts = [most_drafts(chunk, self._length) for chunk in chunks]
        return [
            count if count and self._drafter(chunk.request).find() else 0
            for chunk, count in zip(chunks, counts, strict=True)
        ]

    def _worthwhile(self, chunks: Sequence[Chunk], room: int) -> list[int]:
        """How many drafts of each chunk make the step worth most."""
        none = [0] * len(chunks)
        if not only_decodes(chunks):
            # Beside prefill the processor is busy as it is.
            return none
        gains: list[tuple[float, int]] = []
        for number, chunk in enumerate(chunks):
            most = most_drafts(chunk, LONGEST_DRAFT)
            if most and self._drafter(chunk.request).find():
                expected = 1.0
                for chance in self._drafter(chunk.request).chances(most):
                    gains.append((log1p(chance / expected), number))
                    expected += chance
        if sum(gain for gain, _ in gains) <= MARGIN:
            return none
        gains.sort(reverse=True)
        del gains[room:]
        ratios = self._costs.ratios(len(chunks), len(gains))
        return none if ratios is None else worth_most(gains, ratios, len(chunks), MOST_SLOWED)

    def _drafter(self, request: Request) -> NgramDrafter:
        if request.drafter is None:
            request.drafter = NgramDrafter(request.token_ids, self._typical)
        return request.drafter
