"""What the server's process holds, second by second, and whether that grows."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

_IN_USE = {
    "running": r"^windlass_num_requests_running(?:{.*})? (.*)$",
    "waiting": r"^windlass_num_requests_waiting(?:{.*})? (.*)$",
    "held pages": r'^windlass_kv_cache_pages{.*use="held".*} (.*)$',
}
_PAIRS = 400
"""Points that a slope is taken from: all pairs of them are 80,000 numbers."""


@dataclass(frozen=True)
class Sample:
    """The process at one moment: KiB of memory that no file backs, open descriptors, threads."""

    when: float
    rss: int
    descriptors: int
    threads: int


def sample(pid: int, when: float) -> Sample:
    """Read the meters of a process.

    Raises:
        OSError: it is gone.
    """
    process = Path(f"/proc/{pid}")
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Sample(
        when=when,
        rss=int(fields["RssAnon"].split()[0]),
        descriptors=len(os.listdir(process / "fd")),  # noqa: PTH208
        threads=int(fields["Threads"]),
    )


def busy(exposition: str) -> dict[str, float]:
    """What a server's metrics say is in use: requests that run or wait, pages that are held; over all models.

    Raises:
        ValueError: one of them is missing, so that nobody would know.
    """
    found: dict[str, float] = {}
    for name, pattern in _IN_USE.items():
        values = re.findall(pattern, exposition, re.MULTILINE)
        if not values:
            raise ValueError(f"the metrics have no {name}")
        found[name] = sum(map(float, values))
    return found


def theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes between all pairs of points (Theil 1950, Sen 1968), which single peaks do not move.

    More than ``_PAIRS`` points are thinned out first. Fewer than two have the slope 0.
    """
    step = max(1, len(points) // _PAIRS)
    thin = points[::step]
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for place, earlier in enumerate(thin)
        for later in thin[place + 1 :]
        if later[0] > earlier[0]
    ]
    return median(slopes) if slopes else 0.0


def slopes(samples: Sequence[Sample]) -> dict[str, float]:
    """Growth per minute of each meter in the second half, when caches have filled."""
    half = samples[len(samples) // 2 :]
    return {
        name: 60 * theil_sen([(one.when, getattr(one, name)) for one in half])
        for name in ("rss", "descriptors", "threads")
    }


def as_json(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    return [vars(one) for one in samples]
