"""A loaded model at work: which tokens run next, the run, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from windlass.engine.adapters import Adapters
from windlass.engine.batch import make_batch
from windlass.engine.pages import PagePool
from windlass.engine.recorder import MetricsRecorder
from windlass.engine.request import FinishReason, Request
from windlass.engine.sampler import Sampler
from windlass.engine.scheduler import Chunk, Scheduler
from windlass.engine.speculation import Speculator
from windlass.engine.stream import TokenEvent
from windlass.late_numpy import np
from windlass.native.sampling import SampledToken
from windlass.program.executor import Executor, Rows, StepCancelledError
from windlass.program.pooling import Pooling

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP_SECONDS = 0.1
"""How long a step may take while something decodes; a prefill chunk is cut to fit."""

FIRST_CHUNK = 32
"""Prefill tokens beside decoding while the speed of this model on this machine is not known yet."""

PACE_TOKENS = 16
"""A step of fewer tokens says nothing about the speed of prefill."""


class Runtime:
    """What a loaded model brings to the core. The engine thread alone uses it, and closes it.

    A step is ``schedule`` and then ``run`` of what it chose.
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        sampler: Sampler,
        speculator: Speculator | None = None,
        draft_executor: Executor | None = None,
        pooling: Pooling | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.executor = executor
        self._pooling = pooling
        self._adapters = adapters
        self.broken: list[Request] = []
        """Requests whose adapter gave what no token can be drawn from, until the engine thread takes them out."""
        self._executors = (executor,) if draft_executor is None else (executor, draft_executor)
        self.scheduler = scheduler
        self.sampler = sampler
        self.speculator = speculator
        self._seconds_per_token = 0.0

    @classmethod
    def build(
        cls,
        executor: Executor,
        *,
        num_pages: int,
        max_num_sequence: int,
        max_tokens: int,
        active_vocab_size: int,
        prefix_cache: bool = True,
        kernels: str | None = None,
        speculator: Speculator | None = None,
        draft_executor: Executor | None = None,
        adapters: Adapters | None = None,
        pooling: Pooling | None = None,
        whole_prompts: bool = False,
    ) -> Runtime:
        """Put a scheduler over ``num_pages`` pages and a sampler that uses ``kernels`` beside an executor.

        ``draft_executor`` is the one that ``speculator`` uses, if it does; it is cancelled and closed with the other.
        The requests' adapters are among ``adapters``, which are closed too.
        With ``pooling`` the model makes embeddings of prompts, which ``whole_prompts`` keeps in one piece.
        """
        pool = PagePool(num_pages, prefix_cache=prefix_cache)
        scheduler = Scheduler(
            pool, max_num_sequence=max_num_sequence, max_tokens=max_tokens, whole_prompts=whole_prompts
        )
        sampler = Sampler(active_vocab_size, kernels, executor)
        return cls(executor, scheduler, sampler, speculator, draft_executor, pooling, adapters)

    def cancel(self) -> None:
        """Make ``run`` raise ``StepCancelledError`` soon. From any thread; takes no lock."""
        for executor in self._executors:
            executor.cancel()

    def close(self) -> None:
        """Free everything. Not to be called during ``run``."""
        with ExitStack() as stack:
            for executor in self._executors:
                stack.callback(executor.close)
            if self._adapters is not None:
                stack.callback(self._adapters.close)

    @property
    def progress(self) -> int:
        """A counter that grows while ``run`` makes progress; readable from any thread."""
        return sum(executor.progress for executor in self._executors)

    def schedule(self, recorder: MetricsRecorder) -> list[Chunk]:
        """Choose the next step. Empty only when nothing waits or runs."""
        chunks = self.scheduler.schedule(self._prefill_budget())
        while self.scheduler.preempted:
            recorder.preempted(self.scheduler.preempted.pop())
        return chunks

    def run(self, chunks: Sequence[Chunk], recorder: MetricsRecorder) -> list[TokenEvent]:
        """Run the model on ``chunks`` and return the tokens drawn; requests that are finished with them hold no pages.

        Raises:
            StepCancelledError: the executor was told to stop; nothing has changed, the step can be scheduled again.
        """
        started = recorder.now()
        try:
            if self.speculator is not None:
                chunks = self.speculator.draft(chunks, self.scheduler)
            rows = self.executor.run(make_batch(chunks, self._pooling))
        except StepCancelledError:
            # One of the executors has heard; for the others, whoever cancelled has left its reasons before it did.
            for executor in self._executors:
                executor.clear_cancel()
            recorder.step_cancelled(started, recorder.now())
            raise
        ended = recorder.now()
        recorder.step(chunks, started, ended)
        self._pace(sum(chunk.num_tokens + len(chunk.drafts) for chunk in chunks), ended - started)
        completed = [chunk for chunk in chunks if chunk.completes]
        for chunk in chunks:
            self.scheduler.advance(chunk.request, chunk.num_tokens)
        if self._pooling is not None:
            return self._embed(self._pooling, rows, chunks, completed, recorder)
        try:
            drawn = self.sampler.sample(rows, completed)
        except FloatingPointError:
            completed, rows = self._leave_out_broken(completed, rows)
            drawn = self.sampler.sample(rows, completed)
        events: list[TokenEvent] = []
        for chunk, tokens in zip(completed, drawn, strict=True):
            events += self._take(chunk, tokens, recorder)
        if self.speculator is not None:
            self.speculator.learn(chunks, recorder.now() - started)
        return events

    def _leave_out_broken(self, chunks: Sequence[Chunk], rows: Rows) -> tuple[list[Chunk], NDArray[np.float32]]:
        """Part with chunks whose logits are not finite where that can be their adapter's fault, and with their rows."""
        logits: NDArray[np.float32] = np.asarray(rows)
        kept: list[Chunk] = []
        indices: list[int] = []
        begin = 0
        for chunk in chunks:
            end = begin + 1 + len(chunk.drafts)
            if chunk.request.adapter is not None and not np.isfinite(logits[begin:end]).all():
                self.broken.append(chunk.request)
            else:
                kept.append(chunk)
                indices += range(begin, end)
            begin = end
        return kept, logits[indices]

    def _embed(
        self,
        pooling: Pooling,
        rows: Rows,
        chunks: Sequence[Chunk],
        completed: Sequence[Chunk],
        recorder: MetricsRecorder,
    ) -> list[TokenEvent]:
        """Give requests the hidden states of their chunks; those that are complete finish with their embedding."""
        states: NDArray[np.float32] = np.asarray(rows)
        begin = 0
        for chunk in chunks:
            end = begin + pooling.num_rows(chunk.num_tokens, completes=chunk in completed)
            chunk.request.pooled = pooling.add(chunk.request.pooled, states[begin:end])
            begin = end
        events = []
        for chunk in completed:
            request = chunk.request
            if request.pooled is not None:
                request.pooled = pooling.finish(request.pooled, len(request.prompt_ids))
            recorder.finished(request, FinishReason.STOP)
            self.scheduler.remove(request)
            events.append(TokenEvent(request, None, None, FinishReason.STOP))
        return events

    def _take(self, chunk: Chunk, tokens: Sequence[SampledToken], recorder: MetricsRecorder) -> list[TokenEvent]:
        """Give a request its next tokens, of which all but the last are drafts that were right."""
        request = chunk.request
        if chunk.drafts:
            recorder.drafted(len(chunk.drafts), len(tokens) - 1)
        events = []
        for number, token in enumerate(tokens):
            if number:
                # The token before this one was drafted: its keys and values are in the cache.
                self.scheduler.advance(request, 1)
            events.append(self._take_one(request, token, recorder))
        return events

    def _take_one(self, request: Request, token: SampledToken, recorder: MetricsRecorder) -> TokenEvent:
        """Give ``request`` its next token, which may be its last."""
        token_id, logprobs = token
        request.token_ids.append(token_id)
        stopped = token_id in request.stop_token_ids
        recorder.token(request, stop=stopped)
        reason = FinishReason.STOP if stopped else None
        if reason is None and request.num_generated >= request.max_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            recorder.finished(request, reason)
            self.scheduler.remove(request)
        return TokenEvent(request, None if stopped else token_id, logprobs, reason)

    def _prefill_budget(self) -> int:
        """Tokens of prefill that fit a step beside decoding, by the speed of the last large step."""
        if not self.scheduler.decoding:
            return self.scheduler.max_tokens
        if not self._seconds_per_token:
            return min(self.scheduler.max_tokens, FIRST_CHUNK)
        # Never less than what measures the speed again: a step that was slow by chance must not slow all others.
        return min(self.scheduler.max_tokens, max(PACE_TOKENS, int(STEP_SECONDS / self._seconds_per_token)))

    def _pace(self, num_tokens: int, seconds: float) -> None:
        if num_tokens >= PACE_TOKENS:
            self._seconds_per_token = seconds / num_tokens
