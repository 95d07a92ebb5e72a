"""Delivery: what the engine thread publishes, on its way to the callers, and calls that run out of time."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

from windlass.engine.request import SPENT, FinishReason, Request
from windlass.native.sampling import TokenLogprobs


class TokenEvent(NamedTuple):
    """What a step published for one request: a token, an ending, or both."""

    request: Request
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
        # What run has in its hands.
        self._item: Sequence[TokenEvent] | _Deadline | None = ()

    def publish(self, events: Sequence[TokenEvent]) -> None:
        """Have ``events`` delivered, in order."""
        self._queue.put(events)

    def expect(self, requests: tuple[Request, ...], deadline: float) -> None:
        """Have a call timed out at ``deadline``, on the clock of ``time.monotonic``, unless it has ended by then."""
        self._queue.put(_Deadline(deadline, next(self._numbers), requests))

    def stop(self) -> None:
        """Have ``run`` return once it has delivered what was published before."""
        self._queue.put(None)

    def run(
        self, time_out: Callable[[tuple[Request, ...]], None], give_up: Callable[[Request, BaseException], None]
    ) -> None:
        """Deliver until ``stop``.

        Call ``time_out`` with the requests of every call that runs out of time, and ``give_up`` with a request whose
        output raised, and what it raised.
        """
        deadlines: list[_Deadline] = []
        while True:
            try:
                item = self._item = self._queue.get(timeout=_seconds_to(deadlines))
            except Empty:
                time_out(heapq.heappop(deadlines).requests)
                continue
            if item is None:
                return
            if isinstance(item, _Deadline):
                heapq.heappush(deadlines, item)
            else:
                for event in item:
                    try:
                        _deliver(event)
                    except BaseException as error:  # one request must not stop the others
                        give_up(event.request, error)
                del event
            # Nothing of a request that is over may stay behind while this thread waits.
            del item
            self._item = ()
            while deadlines and all(request.ended for request in deadlines[0].requests):
                heapq.heappop(deadlines)

    def abandon(self, error: Callable[[], BaseException]) -> None:
        """Once ``run`` has raised: fail all that was published and is not delivered, until ``stop``."""
        item = self._item
        while item is not None:
            if not isinstance(item, _Deadline):
                for event in item:
                    event.request.output.fail(error())
            item = self._queue.get()


def _seconds_to(deadlines: list[_Deadline]) -> float | None:
    return max(0.0, deadlines[0].time - time.monotonic()) if deadlines else None


def _deliver(event: TokenEvent) -> None:
    request, token_id, logprobs, reason = event
    if token_id is not None:
        request.output.put(token_id, logprobs)
    if reason is not None:
        request.output.finish(reason)
        request.output = SPENT
