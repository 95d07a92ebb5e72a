"""What happened when: a bounded record of requests and steps, for ui.perfetto.dev and chrome://tracing."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_PID = 1
_THREAD = {"pid": _PID, "tid": 1}
_NAMES = (
    {"name": "process_name", "ph": "M", **_THREAD, "args": {"name": "windlass"}},
    {"name": "thread_name", "ph": "M", **_THREAD, "args": {"name": "steps"}},
)


class _Event(NamedTuple):
    phase: str
    name: str
    at: float
    seconds: float
    track: int
    arguments: Mapping[str, Any]


class TraceRecorder:
    """The last ``capacity`` events. Times are seconds of any one clock.

    One thread writes, in constant time and without a lock; any thread may read. Steps are slices of one track; each
    request has a track of its own, with its phases as slices inside the slice of the whole request.

    Args:
        capacity: how many events are kept; about 150 bytes each.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        self._events: deque[_Event] = deque(maxlen=capacity)

    def step(self, name: str, started: float, ended: float, **arguments: Any) -> None:
        """Record a step of the engine."""
        self._events.append(_Event("X", name, started, ended - started, 0, arguments))

    def begin(self, track: int, name: str, at: float, **arguments: Any) -> None:
        """Begin a slice on a request's track, inside those that are open there."""
        self._events.append(_Event("b", name, at, 0.0, track, arguments))

    def end(self, track: int, name: str, at: float, **arguments: Any) -> None:
        """End the innermost open slice, which has this ``name``."""
        self._events.append(_Event("e", name, at, 0.0, track, arguments))

    def mark(self, track: int, name: str, at: float, **arguments: Any) -> None:
        """Record a moment on a request's track."""
        self._events.append(_Event("n", name, at, 0.0, track, arguments))

    def count(self, name: str, at: float, **values: float) -> None:
        """Record the present values of a group of counters."""
        self._events.append(_Event("C", name, at, 0.0, 0, values))

    def json(self) -> str:
        """The events in Chrome's trace event format, in order of time (microseconds)."""
        events = sorted(self._events.copy(), key=lambda event: event.at)
        return json.dumps({"displayTimeUnit": "ms", "traceEvents": [*_NAMES, *map(_as_dict, events)]})

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write ``json()`` to a file.

        Raises:
            OSError: the file cannot be written.
        """
        Path(path).write_text(self.json(), encoding="utf-8")


def _as_dict(event: _Event) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": event.name, "ph": event.phase, "ts": round(event.at * 1e6, 3), **_THREAD}
    if event.phase == "X":
        fields["dur"] = round(event.seconds * 1e6, 3)
    elif event.phase != "C":
        fields["cat"] = "request"
        fields["id"] = hex(event.track)
    return {**fields, "args": dict(event.arguments)}
