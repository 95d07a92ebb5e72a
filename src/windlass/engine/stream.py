"""Delivery: what the engine thread publishes, on its way to the callers, and calls that run out of time."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

from windlass.engine.request import FinishReason, Output, Request, TokenLogprobs
from windlass.errors import RequestAbortedError


class TokenEvent(NamedTuple):
    """What a step published for one request: a token, an ending, or both."""

    output: Output
    token_id: int | None
    logprobs: TokenLogprobs | None
    reason: FinishReason | None


class _Deadline(NamedTuple):
    """A call that times out. Deadlines are ordered by their time, and by the order they came in."""

    time: float
    number: int
    requests: tuple[Request, ...]


class StreamBack:
    """The queue to the stream-back thread, and that thread's loop.

    Everything but ``run`` may be called by any thread, and takes no lock. An output that raises fails alone.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Sequence[TokenEvent] | _Deadline | None] = SimpleQueue()
        self._numbers = itertools.count()

    def publish(self, events: Sequence[TokenEvent]) -> None:
        """Have ``events`` delivered, in order."""
        self._queue.put(events)

    def expect(self, requests: tuple[Request, ...], deadline: float) -> None:
        """Have a call timed out at ``deadline``, on the clock of ``time.monotonic``, unless it has ended by then."""
        self._queue.put(_Deadline(deadline, next(self._numbers), requests))

    def stop(self) -> None:
        """Have ``run`` return once it has delivered what was published before."""
        self._queue.put(None)

    def run(self, time_out: Callable[[tuple[Request, ...]], None]) -> None:
        """Deliver until ``stop``; call ``time_out`` with the requests of every call that runs out of time."""
        deadlines: list[_Deadline] = []
        while True:
            try:
                item = self._queue.get(timeout=_seconds_to(deadlines))
            except Empty:
                time_out(heapq.heappop(deadlines).requests)
                continue
            if item is None:
                return
            if isinstance(item, _Deadline):
                heapq.heappush(deadlines, item)
            else:
                for event in item:
                    _deliver(event)
                del event
            # Nothing of a request that is over may stay behind while this thread waits.
            del item
            while deadlines and all(request.ended for request in deadlines[0].requests):
                heapq.heappop(deadlines)


def _seconds_to(deadlines: list[_Deadline]) -> float | None:
    return max(0.0, deadlines[0].time - time.monotonic()) if deadlines else None


def _deliver(event: TokenEvent) -> None:
    output, token_id, logprobs, reason = event
    try:
        if token_id is not None:
            output.put(token_id, logprobs)
        if reason is not None:
            output.finish(reason)
    except Exception as error:  # one request must not stop the others
        failure = RequestAbortedError(f"its output could not be delivered ({type(error).__name__})")
        failure.__cause__ = error
        output.fail(failure)
