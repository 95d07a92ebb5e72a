"""The server's numbers in Prometheus' format: those of its engines, of HTTP, and of the process."""

from __future__ import annotations

import os
import time
from pathlib import Path

from windlass.engine.exposition import Exposition
from windlass.engine.metrics import PREFIX, add_state
from windlass.engine.recorder import Observations
from windlass.errors import EngineError
from windlass.server.served import ServedModels

_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0),
)
_STARTED = time.time()
_PROC = Path("/proc/self")


class HttpMetrics:
    """What HTTP requests a server had. Belongs to its event loop.

    Attributes:
        in_progress: requests that came in and are not over.
        streams: event streams that are open.
    """

    def __init__(self) -> None:
        self.in_progress = 0
        self.streams = 0
        self._counts: dict[tuple[str, str, int], int] = {}
        self._seconds: dict[tuple[str, str], Observations] = {}

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that is over."""
        self._counts[route, method, status] = self._counts.get((route, method, status), 0) + 1
        if (route, method) not in self._seconds:
            self._seconds[route, method] = Observations(_BOUNDS)
        self._seconds[route, method].observe(seconds)

    def add_to(self, text: Exposition) -> None:
        """Add all of it to a document."""
        counts = [
            ({"route": route, "method": method, "status": str(status)}, count)
            for (route, method, status), count in sorted(self._counts.items())
        ]
        text.add("counter", "http_requests_total", "Requests that are over; 499: the client left first.", counts)
        for (route, method), observations in sorted(self._seconds.items()):
            seconds = observations.freeze()
            text.add_histogram(
                "http_request_duration_seconds",
                "From the head of a request to the end of its response.",
                seconds.bounds,
                seconds.counts,
                seconds.total,
                {"route": route, "method": method},
            )
        text.add("gauge", "http_requests_in_progress", "Requests that are not over.", [({}, self.in_progress)])
        text.add("gauge", "http_streams_open", "Event streams that are open.", [({}, self.streams)])


async def exposition(served: ServedModels, http: HttpMetrics) -> str:
    """Return the metrics of a server, in whatever state it is."""
    text = Exposition()
    for model in served.all:
        part = text.part(PREFIX, {"model_name": model.name})
        try:
            engine = model.loaded
            if engine is not None:
                (await engine.metrics()).add_to(part)
                sizes = [({"model_name": f"{model.name}:{name}"}, size) for name, size in model.adapters.items()]
                part.add("gauge", "adapter_bytes", "Memory of a LoRA adapter.", sizes)
                continue
        except EngineError:
            pass  # it was terminated
        add_state(part, model.state)
    http.add_to(text)
    add_process(text)
    return text.text()


def add_process(text: Exposition) -> None:
    """Add what the system says about this process, under the names of Prometheus' own clients."""
    times = os.times()
    text.add(
        "counter", "process_cpu_seconds_total", "Time of all processors.", [({}, round(times.user + times.system, 2))]
    )
    text.add("gauge", "process_start_time_seconds", "Since 1970.", [({}, round(_STARTED, 2))])
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        virtual, resident = (int(pages) * page for pages in (_PROC / "statm").read_text().split()[:2])
        descriptors = sum(1 for _ in (_PROC / "fd").iterdir()) - 1  # but for that of the listing
        threads = sum(1 for _ in (_PROC / "task").iterdir())
    except (OSError, ValueError):
        return
    text.add("gauge", "process_resident_memory_bytes", "Memory in use.", [({}, resident)])
    text.add("gauge", "process_virtual_memory_bytes", "Address space in use.", [({}, virtual)])
    text.add("gauge", "process_open_fds", "Open files and connections.", [({}, descriptors)])
    text.add("gauge", "process_threads", "Threads, those of the native core included.", [({}, threads)])
