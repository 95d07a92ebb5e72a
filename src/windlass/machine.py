"""What this machine gives the process: processor, memory, and the limits of its container.

Read without the compiled module, so that ``windlass doctor`` can still speak when that does not load. Where a function
takes ``root``, that is the root of the file system.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def processor_name() -> str:
    """Return the processor's name as the operating system has it, or its architecture."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    import platform  # an engine starts without it

    return platform.processor() or platform.machine()


def total_bytes() -> int:
    """Return the main memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes(root: Path = _ROOT) -> int | None:
    """Return the memory that this process may still take without swapping, or None where nothing tells.

    It is what the machine has free, or what the process's cgroups leave, whichever is less.
    """
    left = [limit - _used(cgroup) for cgroup, limit in _memory_limits(root)]
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            left.append(int(line.split()[1]) * 1024)
    return max(0, min(left)) if left else None


def memory_limit(root: Path = _ROOT) -> int | None:
    """Return how much memory the process's cgroups allow it, or None when that is no less than there is."""
    return min((limit for _, limit in _memory_limits(root)), default=None)


def cpu_limit(root: Path = _ROOT) -> float | None:
    """Return the processor time that the process's cgroups allow it, in cores, or None."""
    limits = []
    for cgroup in _cgroups(root, "cpu"):
        quota, _, period = _read(cgroup / "cpu.max").strip().partition(" ")
        if not period:
            quota = _read(cgroup / "cpu.cfs_quota_us").strip()
            period = _read(cgroup / "cpu.cfs_period_us").strip()
        # "max" in version 2 and -1 in version 1 are no limit.
        if quota.isdecimal() and period.isdecimal():
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def mapping_processes(files: Collection[Path], root: Path = _ROOT) -> list[int]:
    """Return the ids of the processes that have one of ``files`` mapped, as far as this one may see them (Linux)."""
    wanted = {str(file.resolve()) for file in files}
    found = []
    for maps in root.glob("proc/[0-9]*/maps"):
        if any(_mapped_file(line) in wanted for line in _read(maps).splitlines()):
            found.append(int(maps.parent.name))
    return sorted(found)


def _mapped_file(line: str) -> str:
    """Return the path in a line of ``/proc/PID/maps``, which comes after five fields and spaces."""
    fields = line.split(maxsplit=5)
    return fields[5].replace("\\012", "\n") if len(fields) == 6 else ""


def _cgroups(root: Path, controller: str) -> list[Path]:
    """Return the directories of the process's cgroups that may limit ``controller``, and of all around them.

    Of version 2, and of the hierarchy of version 1 that has the controller. What is not visible from inside of a
    container is named all the same, but is not there to be read; the outermost directory is the container's own.
    """
    found: list[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            cgroup = PurePosixPath(path.lstrip("/"))
            found += [root / "sys/fs/cgroup" / controllers / part for part in (cgroup, *cgroup.parents)]
    return found


def _memory_limits(root: Path) -> list[tuple[Path, int]]:
    """Return the cgroups that limit the process's memory, and how many bytes each allows."""
    limits = []
    for cgroup in _cgroups(root, "memory"):
        limit = _number(cgroup / "memory.max", cgroup / "memory.limit_in_bytes")
        # Version 1 has no word for "none" but a number larger than any memory.
        if limit is not None and limit < total_bytes():
            limits.append((cgroup, limit))
    return limits


def _used(cgroup: Path) -> int:
    """Return the memory that a cgroup holds, but for cached files that it can drop at once."""
    used = _number(cgroup / "memory.current", cgroup / "memory.usage_in_bytes") or 0
    statistics = dict(line.split() for line in _read(cgroup / "memory.stat").splitlines())
    # In version 1 the plain name leaves out the cgroups inside.
    return used - int(statistics.get("total_inactive_file", statistics.get("inactive_file", "0")))


def _number(*paths: Path) -> int | None:
    """Return what the first file holds that holds a number."""
    for path in paths:
        text = _read(path).strip()
        if text.isdecimal():
            return int(text)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return ""
