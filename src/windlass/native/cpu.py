"""What the native executor finds on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from windlass.native import _core


@dataclass(frozen=True, slots=True)
class CpuInfo:
    """The processor as the native executor sees it."""

    features: tuple[str, ...]
    """Instruction sets that matter here and that processor and operating system support."""
    kernels: tuple[str, ...]
    """Kernel tables that run here, the best one last: the one chosen by default."""
    default_threads: int
    """Physical cores that this process may use: within its affinity mask and its CPU quota."""


def cpu_info() -> CpuInfo:
    """Look at the machine now; the affinity mask may change while a process runs."""
    return CpuInfo(
        features=tuple(_core.cpu_features()),
        kernels=tuple(_core.available_kernels()),
        default_threads=_core.default_thread_count(),
    )
