"""What this machine gives the process: processor, memory, and the limits of its container.

Read here without the compiled module, so that ``windlass doctor`` can still speak when that does not load.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def processor_name() -> str:
    """Return the processor's name as the operating system has it, or its architecture."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def total_bytes() -> int:
    """Return the main memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes() -> int | None:
    """Return the memory that can be taken without swapping, or None where the operating system does not tell."""
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def memory_limit(cgroup: Path = CGROUP) -> int | None:
    """Return the memory limit of the process's cgroup (version 2 or 1) in bytes, or None."""
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _read(cgroup / file).strip()
        # Version 1 has no word for "none" but a number larger than any memory.
        if limit.isdecimal() and int(limit) < total_bytes():
            return int(limit)
    return None


def cpu_limit(cgroup: Path = CGROUP) -> float | None:
    """Return the processor time the process's cgroup (version 2 or 1) may use, in cores, or None."""
    quota, _, period = _read(cgroup / "cpu.max").strip().partition(" ")
    if not period:
        quota = _read(cgroup / "cpu/cpu.cfs_quota_us").strip()
        period = _read(cgroup / "cpu/cpu.cfs_period_us").strip()
    # "max" in version 2 and -1 in version 1 are no limit.
    if quota.isdecimal() and period.isdecimal():
        return int(quota) / int(period)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
