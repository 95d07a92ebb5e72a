"""Stand-ins for the parts around the core."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from windlass.engine.loop import EngineCore
from windlass.engine.request import FinishReason, Request, SamplingParams
from windlass.engine.runtime import Runtime
from windlass.engine.state import EngineState, Lifecycle
from windlass.engine.tracing import TraceRecorder
from windlass.native.sampling import TokenLogprobs
from windlass.program.executor import Batch, StepCancelledError

VOCAB = 64

LIMIT = 20.0
"""Seconds after which a wait counts as a hang."""


class CountingExecutor:
    """A model whose next token is the last one plus one, and that checks what every batch promises.

    ``gate``, when given, is waited for in every step: clear it to hold the engine in the middle of a step.
    ``fail_at`` raises ValueError in that step, counted from 1.
    """

    def __init__(self, num_pages: int, *, fail_at: int = 0) -> None:
        self.num_pages = num_pages
        self.batches: list[Batch] = []
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()
        self.closed = False
        self.fail_at = fail_at
        self.cached: dict[int, int] = {}
        self._cancelled = threading.Event()

    def run(self, batch: Batch) -> NDArray[np.float32]:
        if self.closed:
            raise RuntimeError("run after close")
        self.running.set()
        while not self.gate.wait(0.005):
            self._raise_if_cancelled()
        self._raise_if_cancelled()
        self.running.clear()
        self.batches.append(batch)
        if len(self.batches) == self.fail_at:
            raise ValueError("injected failure")
        self._check(batch)
        logits = np.zeros((len(batch.logit_rows), VOCAB), dtype=np.float32)
        for row, token in enumerate(batch.logit_rows):
            logits[row, (int(batch.token_ids[token]) + 1) % VOCAB] = 10.0
        return logits

    def _check(self, batch: Batch) -> None:
        """Nobody writes what another sequence reads, and every position read holds its sequence's token."""
        ranges = list(zip(batch.token_starts[:-1], batch.token_starts[1:], strict=True))
        pages = [
            batch.page_ids[start:end].tolist()
            for start, end in zip(batch.page_starts[:-1], batch.page_starts[1:], strict=True)
        ]
        writers: dict[int, int] = {}
        for s, (start, end) in enumerate(ranges):
            positions = batch.positions[start:end].tolist()
            assert positions == list(range(positions[0], positions[0] + len(positions)))
            assert len(set(pages[s])) == len(pages[s])
            for token, position in zip(range(start, end), positions, strict=True):
                page = pages[s][position // 16]
                assert writers.setdefault(page, s) == s, "two sequences write to one page"
                self.cached[page * 16 + position % 16] = int(batch.token_ids[token])
        for s, (_, end) in enumerate(ranges):
            assert all(writers.get(page, s) == s for page in pages[s]), "a sequence reads what another one writes"
            context = [self.cached[pages[s][p // 16] * 16 + p % 16] for p in range(int(batch.positions[end - 1]) + 1)]
            expected = [(context[0] + i) % VOCAB for i in range(len(context))]
            assert context == expected, "the cache does not hold the sequence"

    def _raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            self._cancelled.clear()
            self.running.clear()
            raise StepCancelledError

    def cancel(self) -> None:
        self._cancelled.set()

    def clear_cancel(self) -> None:
        self._cancelled.clear()

    @property
    def progress(self) -> int:
        return len(self.batches)

    def close(self) -> None:
        self.closed = True


class RecordingOutput:
    """Keeps what it is given; ``ended`` is set by the first ending."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.reason: FinishReason | None = None
        self.error: BaseException | None = None
        self.endings = 0
        self.ended = threading.Event()
        self._ending = threading.RLock()

    def put(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        assert logprobs is None or logprobs.logprob <= 0.0
        assert not self.ended.is_set() or self.error is not None, "a token after the ending"
        self.token_ids.append(token_id)

    def finish(self, reason: FinishReason) -> None:
        with self._ending:
            if not self.ended.is_set():
                self.reason = reason
                self.endings += 1
                self.ended.set()

    def fail(self, error: BaseException) -> None:
        with self._ending:
            if not self.ended.is_set():
                self.error = error
                self.endings += 1
                self.ended.set()


def make_request(
    name: str = "r", *, prompt: int = 4, start: int = 0, max_tokens: int = 8, stop: tuple[int, ...] = ()
) -> tuple[Request, RecordingOutput]:
    """Return a greedy request whose prompt counts up from ``start``, and where its tokens go."""
    output = RecordingOutput()
    request = Request(
        request_id=name,
        prompt_ids=[(start + i) % VOCAB for i in range(prompt)],
        max_tokens=max_tokens,
        stop_token_ids=frozenset(stop),
        sampling=SamplingParams(temperature=0.0),
        output=output,
    )
    return request, output


def expected_tokens(request: Request) -> list[int]:
    """What ``CountingExecutor`` generates for a request without stop tokens."""
    last = request.prompt_ids[-1]
    return [(last + 1 + i) % VOCAB for i in range(request.max_tokens)]


@contextmanager
def running(
    executor: CountingExecutor, *, sequences: int = 4, tokens: int = 32, trace: TraceRecorder | None = None
) -> Iterator[EngineCore]:
    """Run a core on ``executor``; at the end its threads have ended, the executor is closed, nothing is left open."""
    lifecycle = Lifecycle()
    runtime = Runtime.build(
        executor,
        num_pages=executor.num_pages,
        max_num_sequence=sequences,
        max_tokens=tokens,
        active_vocab_size=VOCAB,
    )
    core = EngineCore(lifecycle, runtime, trace=trace)
    threads = core.init_threaded_engine()
    lifecycle.advance(EngineState.READY)
    try:
        yield core
    finally:
        executor.gate.set()
        core.exit_background_loop()
        for thread in threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        assert executor.closed
        assert not core._recorder._open
