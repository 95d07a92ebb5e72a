"""Where the engine thread tells what it does; where any thread reads what it did."""

from __future__ import annotations

import enum
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from windlass.engine.metrics import EngineMetrics, Histogram, rate
from windlass.engine.request import FinishReason, Request
from windlass.engine.scheduler import Chunk, Scheduler
from windlass.engine.state import EngineState
from windlass.engine.tracing import TraceRecorder

_REQUEST_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0),
)
_TOKEN_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))

_BOUNDS = {
    "time_to_first_token_seconds": _REQUEST_SECONDS,
    "inter_token_latency_seconds": _TOKEN_SECONDS,
    "e2e_request_latency_seconds": _REQUEST_SECONDS,
    "request_queue_time_seconds": _REQUEST_SECONDS,
    "request_prefill_time_seconds": _REQUEST_SECONDS,
    "request_decode_time_seconds": _REQUEST_SECONDS,
    "request_prompt_tokens": _TOKENS,
    "request_generation_tokens": _TOKENS,
}
_TIMES = ("engine_prefill_time_sum", "engine_decode_time_sum")
_COUNTS = (
    *("prompt_tokens_sum", "completion_tokens_sum", "prefill_tokens_sum", "decode_tokens_sum"),
    *("prefix_cache_queries", "prefix_cache_hits", "num_steps", "num_cancelled_steps", "num_preemptions"),
    "num_drafts",
)


class AbortCause(enum.Enum):
    """Why a request did not end well."""

    CALLER = "caller"
    """By its id, by closing or dropping its stream, or by cancelling its task."""
    TIMEOUT = "timeout"
    DELIVERY = "delivery"
    """Its output raised."""
    RESET = "reset"
    UNLOAD = "unload"
    TERMINATION = "termination"
    FAILURE = "failure"


class RefusalCause(enum.Enum):
    """Why a request was not accepted."""

    OVERLOAD = "overload"
    INVALID = "invalid"
    CONTEXT_LENGTH = "context_length"
    UNLOADED = "unloaded"
    """No model is loaded, or not yet."""
    TERMINATION = "termination"
    """The engine drains or terminates."""
    FAILURE = "failure"


class Observations:
    """A histogram that grows. One thread observes and freezes.

    Args:
        bounds: the inclusive upper ends of all buckets but the last one, which has none.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._frozen: Histogram | None = None

    def observe(self, value: float) -> None:
        """Count ``value``."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value
        self._frozen = None

    def freeze(self) -> Histogram:
        """What has been observed so far."""
        if self._frozen is None:
            self._frozen = Histogram(self._bounds, tuple(self._counts), self._total)
        return self._frozen


@dataclass(slots=True)
class _Timeline:
    """What happened to a request so far, and when. ``track`` is its number in the trace."""

    track: int
    accepted: float
    phase: str = "queued"
    scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    num_tokens: int = 0
    num_prefilled: int = 0


class _Totals:
    """All that was counted since the start, or the last reset."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {**dict.fromkeys(_COUNTS, 0), **dict.fromkeys(_TIMES, 0.0)}
        self.finished = {reason.value: 0 for reason in FinishReason}
        self.aborted = {cause.value: 0 for cause in AbortCause}
        self.refused = {cause.value: 0 for cause in RefusalCause}
        self.last_finished: Mapping[str, float] = {}
        self.decode_steps: dict[int, tuple[int, float]] = {}
        self.drafts: dict[int, tuple[int, int]] = {}
        self.observations = {name: Observations(bounds) for name, bounds in _BOUNDS.items()}

    def observe(self, name: str, value: float) -> None:
        self.observations[name].observe(value)

    def freeze(self) -> dict[str, Any]:
        """The fields of ``EngineMetrics`` that are counted here, as copies that nobody changes any more."""
        return {
            **self.sums,
            "requests_finished": self.finished.copy(),
            "requests_aborted": self.aborted.copy(),
            "requests_refused": self.refused.copy(),
            "last_finished_request": self.last_finished,
            "decode_steps_by_batch_size": self.decode_steps.copy(),
            "draft_tokens_by_position": self.drafts.copy(),
            **{name: observations.freeze() for name, observations in self.observations.items()},
        }


class MetricsRecorder:
    """Counts what the engine does, and traces it when asked to.

    The engine thread alone records. It makes all that it recorded visible with ``publish``, by one assignment of an
    immutable copy, so a reader never waits for it, never delays it, and never sees half of an update. Requests that
    are not known, because they were never accepted or have ended, are ignored.

    Args:
        clock: gives seconds.
        trace: takes every event too; None costs nothing.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, trace: TraceRecorder | None = None) -> None:
        self.now = clock
        self._trace = trace
        self._open: dict[Request, _Timeline] = {}
        self._num_accepted = 0
        self._step_ended = 0.0
        self._gauges: dict[str, int] = {}
        self._totals = _Totals()
        self._published: Mapping[str, Any] = {}
        self.publish(None)

    # Called by any thread.

    def snapshot(self, state: EngineState) -> EngineMetrics:
        """What was published last, for an engine in ``state``."""
        return EngineMetrics(state=state, **self._published)

    # Called by the engine thread.

    def accepted(self, request: Request, at: float) -> None:
        """``request`` was accepted ``at`` that time (of ``now``), and is given to the scheduler now."""
        self._num_accepted += 1
        timeline = _Timeline(self._num_accepted, at)
        self._open[request] = timeline
        if self._trace is not None:
            self._trace.begin(
                timeline.track,
                "request",
                at,
                request_id=request.request_id,
                choice=request.sampling.choice,
                prompt_tokens=len(request.prompt_ids),
            )
            self._trace.begin(timeline.track, "queued", at)

    def step(self, chunks: Sequence[Chunk], started: float, ended: float) -> None:
        """The model ran ``chunks``. To be called before their requests are advanced and before ``token``."""
        num_prefill = num_decode = 0
        for chunk in chunks:
            decodes = chunk.num_tokens == 1 and chunk.request.num_generated > 0
            num_decode += decodes
            num_prefill += 0 if decodes else chunk.num_tokens
            timeline = self._open.get(chunk.request)
            if timeline is None:
                continue
            if timeline.phase == "queued":
                self._first_scheduled(chunk.request, timeline, started)
            timeline.num_prefilled += 0 if decodes else chunk.num_tokens
        self._step_ended = ended
        self._totals.sums["num_steps"] += 1
        self._totals.sums["prefill_tokens_sum"] += num_prefill
        self._totals.sums["decode_tokens_sum"] += num_decode
        seconds = ended - started
        prefill_seconds = seconds * rate(num_prefill, num_prefill + num_decode)
        self._totals.sums["engine_prefill_time_sum"] += prefill_seconds
        self._totals.sums["engine_decode_time_sum"] += seconds - prefill_seconds
        if num_decode and not num_prefill:
            count, total = self._totals.decode_steps.get(num_decode, (0, 0.0))
            self._totals.decode_steps[num_decode] = (count + 1, total + seconds)
        if self._trace is not None:
            num_drafts = sum(len(chunk.drafts) for chunk in chunks)
            self._trace.step(
                "step", started, ended, prefill_tokens=num_prefill, decode_tokens=num_decode, draft_tokens=num_drafts
            )

    def step_cancelled(self, started: float, ended: float) -> None:
        """A step was cut short."""
        self._totals.sums["num_cancelled_steps"] += 1
        if self._trace is not None:
            self._trace.step("cancelled step", started, ended)

    def preempted(self, request: Request) -> None:
        """``request`` gave its pages back and waits again."""
        self._totals.sums["num_preemptions"] += 1
        timeline = self._open.get(request)
        if self._trace is not None and timeline is not None:
            self._trace.mark(timeline.track, "preempted", self.now())

    def drafted(self, num_drafts: int, num_accepted: int) -> None:
        """A request had ``num_drafts`` drafts in the step that was recorded last, of which the first were right."""
        self._totals.sums["decode_tokens_sum"] += num_accepted
        self._totals.sums["num_drafts"] += 1
        for position in range(num_drafts):
            drafted, accepted = self._totals.drafts.get(position, (0, 0))
            self._totals.drafts[position] = (drafted + 1, accepted + (position < num_accepted))

    def token(self, request: Request, *, stop: bool) -> None:
        """A token of ``request`` was drawn in the step that was recorded last; ``stop``: it is a stop token."""
        timeline = self._open.get(request)
        if timeline is None:
            return
        at = self._step_ended
        if timeline.phase == "prefill":
            timeline.first_token = at
            self._totals.observe("time_to_first_token_seconds", at - timeline.accepted)
            self._totals.observe("request_prefill_time_seconds", at - timeline.scheduled)
            self._totals.sums["prompt_tokens_sum"] += len(request.prompt_ids)
            self._enter(timeline, "decode", at)
        elif not stop:
            self._totals.observe("inter_token_latency_seconds", at - timeline.last_token)
        if not stop:
            timeline.num_tokens += 1
            self._totals.sums["completion_tokens_sum"] += 1
        timeline.last_token = at

    def finished(self, request: Request, reason: FinishReason) -> None:
        """``request`` ended well, after its last ``token``."""
        timeline = self._open.pop(request, None)
        if timeline is None:
            return
        at = self.now()
        self._totals.finished[reason.value] += 1
        prefill_seconds = timeline.first_token - timeline.scheduled
        decode_seconds = timeline.last_token - timeline.first_token
        num_decoded = max(timeline.num_tokens - 1, 0)
        self._totals.observe("e2e_request_latency_seconds", at - timeline.accepted)
        self._totals.observe("request_decode_time_seconds", decode_seconds)
        self._totals.observe("request_prompt_tokens", len(request.prompt_ids))
        self._totals.observe("request_generation_tokens", timeline.num_tokens)
        self._totals.last_finished = {
            "prompt_tokens": len(request.prompt_ids),
            "completion_tokens": timeline.num_tokens,
            "prefill_tokens": timeline.num_prefilled,
            "decode_tokens": num_decoded,
            "prefill_tokens_per_s": rate(timeline.num_prefilled, prefill_seconds),
            "decode_tokens_per_s": rate(num_decoded, decode_seconds),
            "end_to_end_latency_s": at - timeline.accepted,
            "ttft_s": timeline.first_token - timeline.accepted,
            "inter_token_latency_s": rate(decode_seconds, num_decoded),
        }
        self._trace_end(timeline, at, reason.value)

    def aborted(self, request: Request, cause: AbortCause) -> None:
        """``request`` ended otherwise."""
        timeline = self._open.pop(request, None)
        if timeline is not None:
            self._totals.aborted[cause.value] += 1
            self._trace_end(timeline, self.now(), f"aborted: {cause.value}")

    def aborted_all(self, cause: AbortCause) -> None:
        """All requests that are open ended for ``cause``."""
        for request in list(self._open):
            self.aborted(request, cause)

    def refused(self, cause: RefusalCause) -> None:
        """A request was not accepted."""
        self._totals.refused[cause.value] += 1

    def reset(self) -> None:
        """Count from zero again. Open requests stay, and the trace too."""
        self._totals = _Totals()

    def publish(self, scheduler: Scheduler | None) -> None:
        """Let readers see all that was recorded, and what ``scheduler`` holds; None without a model."""
        gauges = _gauges(scheduler)
        if self._trace is not None and gauges != self._gauges:
            at = self.now()
            self._trace.count("requests", at, **_pick(gauges, "num_requests_"))
            self._trace.count("pages", at, **_pick(gauges, "num_pages_"))
        self._gauges = gauges
        self._published = {**gauges, **self._totals.freeze()}

    def _first_scheduled(self, request: Request, timeline: _Timeline, at: float) -> None:
        timeline.scheduled = at
        self._totals.observe("request_queue_time_seconds", at - timeline.accepted)
        self._totals.sums["prefix_cache_queries"] += len(request.prompt_ids)
        self._totals.sums["prefix_cache_hits"] += request.num_reused
        self._enter(timeline, "prefill", at)

    def _enter(self, timeline: _Timeline, phase: str, at: float) -> None:
        if self._trace is not None:
            self._trace.end(timeline.track, timeline.phase, at)
            self._trace.begin(timeline.track, phase, at)
        timeline.phase = phase

    def _trace_end(self, timeline: _Timeline, at: float, outcome: str) -> None:
        if self._trace is not None:
            self._trace.end(timeline.track, timeline.phase, at)
            self._trace.end(timeline.track, "request", at, outcome=outcome, completion_tokens=timeline.num_tokens)


def _gauges(scheduler: Scheduler | None) -> dict[str, int]:
    pool = scheduler.pool if scheduler is not None else None
    return {
        "num_requests_waiting": len(scheduler.waiting) if scheduler is not None else 0,
        "num_requests_running": len(scheduler.running) if scheduler is not None else 0,
        "num_pages": pool.num_pages if pool is not None else 0,
        "num_pages_free": pool.num_free if pool is not None else 0,
        "num_pages_cached": pool.num_available - pool.num_free if pool is not None else 0,
        "num_pages_held": pool.num_pages - pool.num_available if pool is not None else 0,
    }


def _pick(gauges: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): value for name, value in gauges.items() if name.startswith(prefix)}
