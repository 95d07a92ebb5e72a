"""Drafts from a smaller model that runs beside the one that answers."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from time import perf_counter

from windlass.engine.batch import Span, lay_out
from windlass.engine.costs import StepCosts
from windlass.engine.scheduler import Chunk, Scheduler
from windlass.engine.speculation import MARGIN, most_drafts, only_decodes, with_drafts
from windlass.late_numpy import np
from windlass.native.sampling import RowSampler, SamplingRow
from windlass.program.executor import PAGE_SIZE, Executor, Rows

LONGEST_DRAFT = 8
"""Most drafts of one sequence when their number adapts."""

RATE = 0.1
"""Weight of one draft in the estimate of how many are right."""

SHORTEST_PAUSE, LONGEST_PAUSE = 16, 256
"""Steps without drafts after drafts did not pay; twice as many each time."""


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
        self._pause = 0
        self._next_pause = SHORTEST_PAUSE

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
        length = self._length or self._worthwhile(chunks)
        counts = []
        for chunk in chunks:
            count = scheduler.reserve_drafts(chunk, min(most_drafts(chunk, length), room)) if length else 0
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
                request.draft_acceptance += RATE * (right - request.draft_acceptance)
                if not right:
                    break
        if only_decodes(chunks):
            num_drafts = sum(len(chunk.drafts) for chunk in chunks)
            self._costs.note(len(chunks) + num_drafts, seconds - self._drafting_seconds)

    def _worthwhile(self, chunks: Sequence[Chunk]) -> int:
        """How many drafts of every sequence make the step worth most; see ``NgramSpeculator``."""
        if not only_decodes(chunks):
            return 0
        if self._pause:
            self._pause -= 1
            return 0
        count = len(chunks)
        step = self._costs.seconds(count)
        if not step:
            return 0
        ratios = self._costs.ratios(count, count * LONGEST_DRAFT) or []
        draft = (self._draft_costs.seconds(count) or 0.0) / step
        best, taken = MARGIN, 0
        for length in range(1, (len(ratios) - 1) // count + 1):
            gained = sum(log(_expected(chunk.request.draft_acceptance, length)) for chunk in chunks)
            worth = gained - count * log(ratios[count * length] + length * draft)
            if worth > best:
                best, taken = worth, length
        if taken:
            self._next_pause = SHORTEST_PAUSE
            return taken
        self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, LONGEST_PAUSE)
        # One more try, to see whether they have become better.
        return 1

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
        logits = self._executor.run(lay_out(spans))
        for chunk in caught_up:
            chunk.request.num_draft_computed = _end(chunk)
        return logits

    def _write_ahead(self, chunks: Sequence[Chunk], counts: Sequence[int], logits: Rows) -> list[list[int]]:
        """Draw the drafts one after the other, those of all sequences together."""
        drafts: list[list[int]] = [[] for _ in chunks]
        for written in range(1, max(counts, default=0) + 1):
            wanted = [number for number, count in enumerate(counts) if count >= written]
            for number, token_id in zip(wanted, self._draw(logits, [chunks[n] for n in wanted], written), strict=True):
                drafts[number].append(token_id)
            going_on = [number for number, count in enumerate(counts) if count > written]
            if not going_on:
                break
            began = perf_counter()
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


def _expected(acceptance: float, length: int) -> float:
    """Tokens of a step with ``length`` drafts."""
    return sum(acceptance**right for right in range(length + 1))
