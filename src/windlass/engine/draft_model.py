"""Drafts from a smaller model that runs beside the one that answers."""

from __future__ import annotations

from collections.abc import Sequence
from math import log1p
from time import perf_counter

from windlass.engine.acceptance import Acceptance
from windlass.engine.batch import Span, lay_out
from windlass.engine.costs import StepCosts
from windlass.engine.request import Request
from windlass.engine.scheduler import Chunk, Scheduler
from windlass.engine.speculation import LONGEST_DRAFT, most_drafts, only_decodes, with_drafts, worth_most
from windlass.late_numpy import np
from windlass.native.sampling import RowSampler, SamplingRow
from windlass.program.executor import PAGE_SIZE, Executor, Rows

FIRST_CHANCE = 0.7
"""How likely a guess is taken to be right before there were any."""

LEAST_CHANCE = 0.02
"""No draft is worth the draft model's step for it when it is right less often than this."""

RATE = 0.05
"""Weight of one guess in what new sequences begin with."""

MOST_SLOWED = 0.25
"""How much slower (its logarithm) a sequence may become for the sake of others; one draft may well cost a tenth."""


class ModelSpeculator:
    """Has a smaller model of the same vocabulary write ahead, with the noise that the answers are drawn with.

    Its KV cache has the same pages as the model's own: the page ids of a request serve both. It computes the prompts
    too, and whatever fills a page, so that what the prefix tree holds is valid in both caches.

    Args:
        executor: runs the smaller model, on at least ``most_tokens`` tokens in a step.
        active_vocab_size: ids from here on are never drawn.
        length: drafts for each sequence in every step; 0 drafts as many as promise to pay.
        kernels: the sampler's.
    """

    def __init__(
        self, executor: Executor, active_vocab_size: int, *, length: int = 0, kernels: str | None = None
    ) -> None:
        self._executor = executor
        self._rows = RowSampler(active_vocab_size, kernels=kernels)
        self._length = length
        self._costs = StepCosts()
        self._draft_costs = StepCosts()
        self._drafting_seconds = 0.0
        self._lengths: list[int] = []
        self._typical = FIRST_CHANCE

    @staticmethod
    def most_tokens(max_tokens: int, max_num_sequence: int) -> int:
        """How many tokens its executor gets at most: a step's, and for each sequence what it had left for later."""
        return max_tokens + PAGE_SIZE * max_num_sequence

    def draft(self, chunks: Sequence[Chunk], scheduler: Scheduler) -> list[Chunk]:
        """See ``Speculator``."""
        began = perf_counter()
        for chunk in chunks:
            # What stands behind a draft that was wrong is to be written again.
            chunk.request.num_draft_computed = min(chunk.request.num_draft_computed, chunk.request.num_computed)
        room = scheduler.max_tokens - sum(chunk.num_tokens for chunk in chunks)
        if self._length:
            wanted = [most_drafts(chunk, self._length) for chunk in chunks]
        else:
            wanted = self._worthwhile(chunks, room)
        counts = []
        for chunk, count in zip(chunks, wanted, strict=True):
            count = scheduler.reserve_drafts(chunk, min(count, room)) if count else 0
            if count and (_end(chunk) + count) % PAGE_SIZE == 0:
                # The last draft is not run through the smaller model, so it must not be what fills a page.
                count -= 1
            room -= count
            counts.append(count)
        logits = self._catch_up(chunks, counts)
        try:
            drafts = self._write_ahead(chunks, counts, logits)
        except FloatingPointError:
            # A draft model that does not work is no reason to fail: it is not the one that answers.
            drafts = [[] for _ in chunks]
        self._lengths = [len(chunk.request.token_ids) for chunk in chunks]
        self._drafting_seconds = perf_counter() - began
        return [with_drafts(chunk, tokens) if tokens else chunk for chunk, tokens in zip(chunks, drafts, strict=True)]

    def learn(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """See ``Speculator``."""
        for chunk, length in zip(chunks, self._lengths, strict=True):
            request = chunk.request
            for draft, token_id in zip(chunk.drafts, request.token_ids[length:], strict=False):
                right = draft == token_id
                self._typical += RATE * (right - self._typical)
                self._acceptance(request).note(right=right)
                if not right:
                    break
        if only_decodes(chunks):
            num_drafts = sum(len(chunk.drafts) for chunk in chunks)
            self._costs.note(len(chunks) + num_drafts, seconds - self._drafting_seconds)

    def _acceptance(self, request: Request) -> Acceptance:
        if request.acceptance is None:
            request.acceptance = Acceptance(self._typical)
        return request.acceptance

    def _worthwhile(self, chunks: Sequence[Chunk], room: int) -> list[int]:
        """How many drafts of each chunk make the step worth most."""
        none = [0] * len(chunks)
        step = self._costs.seconds(len(chunks))
        if not only_decodes(chunks) or not step:
            return none
        gains: list[tuple[float, int]] = []
        asked = []
        for number, chunk in enumerate(chunks):
            most = most_drafts(chunk, LONGEST_DRAFT)
            acceptance = self._acceptance(chunk.request)
            if acceptance.waits() or not most:
                continue
            asked.append((number, acceptance))
            chance, expected = 1.0, 1.0
            for _ in range(most):
                chance *= acceptance.chance
                if chance < LEAST_CHANCE:
                    break
                gains.append((log1p(chance / expected), number))
                expected += chance
        gains.sort(reverse=True)
        del gains[room:]
        ratios = self._costs.ratios(len(chunks), len(gains)) or [1.0]
        writing = self._seconds_of_writing([number for _, number in gains[: len(ratios) - 1]])
        costs = [ratio + seconds / step for ratio, seconds in zip(ratios, writing, strict=True)]
        counts = worth_most(gains, costs, len(chunks), MOST_SLOWED)
        for number, acceptance in asked:
            counts[number] = counts[number] or acceptance.does_not_pay()
        return counts

    def _seconds_of_writing(self, numbers: Sequence[int]) -> list[float]:
        """What the first 0, 1, 2 .. drafts take, those of ``numbers``; drafts that come at once count as one step."""
        most = max(numbers, default=-1) + 1
        seconds, drafts, sizes = [0.0], [0] * most, [0] * (LONGEST_DRAFT + 1)
        costs = [0.0, *(self._draft_costs.near(size) or 0.0 for size in range(1, most + 1))]
        for number in numbers:
            drafts[number] += 1
            turn = drafts[number]
            sizes[turn] += 1
            seconds.append(seconds[-1] + costs[sizes[turn]] - costs[sizes[turn] - 1])
        return seconds

    def _catch_up(self, chunks: Sequence[Chunk], counts: Sequence[int]) -> Rows:
        """Run the smaller model where it is wanted now; return the logits behind the chunks that get drafts."""
        spans, caught_up = [], []
        for chunk, count in zip(chunks, counts, strict=True):
            request, end = chunk.request, _end(chunk)
            # What is not wanted now is left until it fills a page: many tokens at once cost little more than one.
            if count or chunk.num_tokens > 1 or end % PAGE_SIZE == 0:
                begin = request.num_draft_computed
                spans.append(Span(request.token_ids[begin:end], begin, request.pages, 1 if count else 0))
                caught_up.append(chunk)
        if not spans:
            return np.zeros((0, 0), dtype=np.float32)
        began = perf_counter()
        logits = self._executor.run(lay_out(spans))
        if all(len(span.token_ids) <= 2 for span in spans):
            # As after drafts that were all right: as good as one token each.
            self._draft_costs.note(len(spans), perf_counter() - began)
        for chunk in caught_up:
            chunk.request.num_draft_computed = _end(chunk)
        return logits

    def _write_ahead(self, chunks: Sequence[Chunk], counts: Sequence[int], logits: Rows) -> list[list[int]]:
        """Draw the drafts one after the other, those of all sequences together."""
        drafts: list[list[int]] = [[] for _ in chunks]
        for written in range(1, max(counts, default=0) + 1):
            began = perf_counter()
            wanted = [number for number, count in enumerate(counts) if count >= written]
            for number, token_id in zip(wanted, self._draw(logits, [chunks[n] for n in wanted], written), strict=True):
                drafts[number].append(token_id)
            going_on = [number for number in wanted if counts[number] > written]
            if not going_on:
                break
            spans = [Span([drafts[n][-1]], _end(chunks[n]) + written - 1, chunks[n].request.pages, 1) for n in going_on]
            logits = self._executor.run(lay_out(spans))
            self._draft_costs.note(len(going_on), perf_counter() - began)
            for number in going_on:
                chunks[number].request.num_draft_computed = _end(chunks[number]) + written
        return drafts

    def _draw(self, logits: Rows, chunks: Sequence[Chunk], written: int) -> list[int]:
        rows = []
        for chunk in chunks:
            request = chunk.request
            request.sequence.follow(request.token_ids, len(request.prompt_ids))
            rows.append(SamplingRow(request.sequence, len(request.token_ids) + written - 1))
        return [token.token_id for token in self._rows.sample_rows(logits, rows)]


def _end(chunk: Chunk) -> int:
    """The position after the chunk's last token."""
    return chunk.request.num_computed + chunk.num_tokens
