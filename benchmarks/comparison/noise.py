"""What else the machine did during a measurement, and the lock that keeps two measurements apart."""

from __future__ import annotations

import fcntl
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # idle, iowait
_STEAL = 7


@contextmanager
def alone() -> Iterator[None]:
    """Hold the machine's benchmark lock; waits for another measurement to end."""
    with (Path(tempfile.gettempdir()) / "windlass-bench.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Watch:
    """Begins when made; ``others`` and ``stolen`` tell about the time since."""

    def __init__(self) -> None:
        self.load = os.getloadavg()[0]
        self._began = time.monotonic()
        self._ticks = _ticks()
        self._own = _own_seconds()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def result(self) -> tuple[float | None, float | None]:
        """(cores that processes other than this one and its ended children used, part of all time that was stolen)."""
        now = _ticks()
        if not now or not self._ticks:
            return None, None
        spent = [after - before for before, after in zip(self._ticks, now, strict=True)]
        per_second = os.sysconf("SC_CLK_TCK")
        busy = sum(spent) - sum(spent[i] for i in _IDLE) - spent[_STEAL]
        others = busy / per_second - (_own_seconds() - self._own)
        return round(max(0.0, others / self.seconds), 3), round(spent[_STEAL] / max(1, sum(spent)), 4)


def _ticks() -> list[int]:
    if not _STAT.exists():
        return []
    return [int(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1:9]]


def _own_seconds() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
