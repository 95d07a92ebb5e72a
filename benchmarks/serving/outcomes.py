"""From a trace to figures of one request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from serving.targets import DONE, Trace


@dataclass(frozen=True)
class Outcome:
    """One request, in seconds from the beginning of the run.

    Attributes:
        arrived: when it was due, or else sent: what latencies count from.
        times: when each piece of text came.
        prompt_tokens, output_tokens: as the server counted them; without that, output tokens are pieces of text.
        failure: why there is no whole answer; empty for a good one.
    """

    arrived: float
    sent: float
    ended: float
    times: tuple[float, ...]
    prompt_tokens: int | None
    output_tokens: int
    failure: str

    @property
    def first(self) -> float | None:
        """Seconds to the first piece of text."""
        return self.times[0] - self.arrived if self.times else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece of text and the next."""
        return [after - before for before, after in pairwise(self.times)]

    @property
    def per_token(self) -> float | None:
        """Seconds per output token after the first."""
        if not self.times or self.output_tokens < 2:
            return None
        return (self.times[-1] - self.times[0]) / (self.output_tokens - 1)


def outcome_of(trace: Trace, due: float | None, began: float) -> Outcome:
    """Read the chunks of a trace. Times are counted from ``began``.

    A stream is good when it ended as OpenAI's streams do: a finish reason for its choice, then ``[DONE]``.
    """
    failure = trace.failure
    times: list[float] = []
    usage: dict[str, Any] = {}
    finished = done = False
    for when, event in trace.events:
        if event == DONE:
            done = True
            continue
        chunk = _as_dictionary(event)
        if chunk is None or done:
            failure = failure or ("a chunk after [DONE]" if done else "a chunk that is not JSON")
            break
        if error := chunk.get("error"):
            failure = failure or f"error event: {_code(error)}"
            break
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", ()):
            finished = finished or bool(choice.get("finish_reason"))
            if _has_text(choice):
                times.append(when - began)
    if not failure and not (finished and done):
        failure = "no [DONE]" if finished else "no finish reason"
    sent = trace.sent - began
    return Outcome(
        arrived=sent if due is None else due,
        sent=sent,
        ended=trace.ended - began,
        times=tuple(times),
        prompt_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens", len(times)),
        failure=failure,
    )


def _as_dictionary(event: Any) -> dict[str, Any] | None:
    if not isinstance(event, bytes):
        chunk: dict[str, Any] = event.model_dump()
        return chunk
    try:
        value = json.loads(event)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _code(error: Any) -> str:
    return str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else str(error)[:60]


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text"))
    return any(delta.get(name) for name in ("content", "reasoning", "reasoning_content", "tool_calls"))
