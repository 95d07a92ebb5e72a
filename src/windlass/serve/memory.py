"""What memory there is, and giving it back."""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Return the memory this process may still take: what the machine has free, or what its cgroup leaves."""
    machine = _from_meminfo()
    limit, used = _read_int(_CGROUP / "memory.max"), _read_int(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        return max(0, min(machine, limit - used))
    return machine


def return_free_memory() -> None:
    """Have the C library give free heap pages back to the operating system, where it can (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def release_frames(error: BaseException) -> None:
    """Drop the local variables of all that ``error`` went through, and their memory with them, but not what still runs.

    What was half made when it was raised is let go before the error reaches its handler, who may keep it for long.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            waiting += [one.__cause__, one.__context__]


def _from_meminfo() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        # Absent outside a cgroup; the word "max" where there is no limit.
        return None
