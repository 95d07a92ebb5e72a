"""Sends a workload to a target, closed (so many at a time) or open (as they arrive)."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from serving.outcomes import Outcome, outcome_of
from serving.targets import Target, Trace
from serving.workload import Length, Request, TextLength, Workload

_KEPT_BYTES = 64 << 20
"""So much of the answers is kept to be read when the run is over; what comes after that is read as it comes."""
_CALIBRATION = (32, 160)


class CalibrationError(Exception):
    """The target does not answer at all."""


@dataclass(frozen=True)
class Extent:
    """How much is sent: so many requests, or all that begin within so many seconds; and how many at a time."""

    requests: int | None = None
    seconds: float | None = None
    concurrency: int | None = None


@dataclass(frozen=True)
class Run:
    """What one run brought.

    Attributes:
        seconds: from the first request to the end of the last one.
        client_seconds: processor time of this process meanwhile; server_seconds: of the server's, where it is known.
    """

    target: str
    outcomes: tuple[Outcome, ...]
    seconds: float
    client_seconds: float
    server_seconds: float | None


async def measure_text(target: Target) -> TextLength:
    """Learn how many tokens the target makes of so many words; one per word if it does not tell.

    Raises:
        CalibrationError: it does not answer.
    """
    points = []
    for count in _CALIBRATION:
        load = Workload(Length(count, count), Length(1, 1), seed=-count)
        request = next(load.requests(TextLength()))
        outcome = outcome_of(await target.ask(request), None, 0.0)
        if outcome.failure:
            raise CalibrationError(f"a first request of {count} words failed: {outcome.failure}")
        points.append((count, outcome.prompt_tokens or count))
    return TextLength.through(points[0], points[1])


class Runner:
    """One run. ``progress`` is told (requests that have ended, seconds since the beginning) once a second."""

    def __init__(self, target: Target, extent: Extent, progress: Callable[[int, float], None] | None = None) -> None:
        self._target = target
        self._extent = extent
        self._progress = progress
        self._traces: list[tuple[Trace, float | None]] = []
        self._outcomes: list[Outcome] = []
        self._kept = 0
        self._began = 0.0

    async def run(self, requests: Iterator[Request]) -> Run:
        """Send the requests, which stop coming when the extent is reached."""
        processor, server = time.process_time(), self._target.processor_seconds()
        self._began = time.perf_counter()
        reporter = asyncio.ensure_future(self._report())
        try:
            requests = itertools.islice(requests, self._extent.requests)
            first = next(requests)
            requests = itertools.chain((first,), requests)
            await (self._closed(requests) if first.due is None else self._open(requests))
        finally:
            reporter.cancel()
        seconds = time.perf_counter() - self._began
        processor = time.process_time() - processor
        if server is not None:
            server = (self._target.processor_seconds() or server) - server
        self._outcomes += [outcome_of(trace, due, self._began) for trace, due in self._traces]
        return Run(self._target.name, tuple(self._outcomes), seconds, processor, server)

    async def _closed(self, requests: Iterator[Request]) -> None:
        async def work() -> None:
            for request in requests:
                if self._is_over():
                    return
                await self._ask(request)

        await asyncio.gather(*(work() for _ in range(self._extent.concurrency or 1)))

    async def _open(self, requests: Iterator[Request]) -> None:
        limit = self._extent.concurrency
        room: AbstractAsyncContextManager[object] = asyncio.Semaphore(limit) if limit else nullcontext()

        async def work(request: Request) -> None:
            async with room:
                await self._ask(request)

        tasks = set()
        for request in requests:
            due = request.due or 0.0
            if self._extent.seconds is not None and due > self._extent.seconds:
                break
            await asyncio.sleep(self._began + due - time.perf_counter())
            task = asyncio.ensure_future(work(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.gather(*tasks)

    def _is_over(self) -> bool:
        return self._extent.seconds is not None and time.perf_counter() - self._began > self._extent.seconds

    async def _ask(self, request: Request) -> None:
        trace = await self._target.ask(request)
        self._kept += sum(len(event) for _, event in trace.events if isinstance(event, bytes))
        if self._kept > _KEPT_BYTES:
            self._outcomes.append(outcome_of(trace, request.due, self._began))
        else:
            self._traces.append((trace, request.due))

    async def _report(self) -> None:
        while self._progress is not None:
            await asyncio.sleep(1.0)
            self._progress(len(self._traces) + len(self._outcomes), time.perf_counter() - self._began)
