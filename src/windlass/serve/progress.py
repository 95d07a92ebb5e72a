"""What a load tells while it works."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

QUIET_SECONDS = 1.0
"""A load shows nothing before it has taken this long."""

REDRAW_SECONDS = 0.1


class Progress(Protocol):
    """Told how far a phase is. Called often, by the loading thread; must be cheap."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of ``phase`` are behind; ``total`` 0 means that its length is unknown."""
        ...


class TerminalProgress:
    """One line on a terminal, drawn over itself and wiped at the end; silent for short loads and for pipes."""

    def __init__(self, *, enabled: bool = True) -> None:
        # sys.stderr is None in an interpreter without a console.
        self._stream: TextIO | None = sys.stderr
        self._enabled = enabled and self._stream is not None and not self._stream.closed and self._stream.isatty()
        self._started = time.monotonic()
        self._drawn = 0.0
        self._shown = False

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Draw the phase, at most ten times a second."""
        now = time.monotonic()
        if (
            self._stream is None
            or not self._enabled
            or now - self._started < QUIET_SECONDS
            or now - self._drawn < REDRAW_SECONDS
        ):
            return
        self._drawn = now
        self._shown = True
        share = f" {100 * done // total:3d} %" if total else ""
        self._stream.write(f"\r\x1b[Kwindlass: {phase}{share}")
        self._stream.flush()

    def close(self) -> None:
        """Wipe the line."""
        if self._shown and self._stream is not None:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False


class Interruptible:
    """A progress that may end the work which reports to it."""

    def __init__(self, progress: Progress, interrupt: Callable[[], None]) -> None:
        self._progress = progress
        self._interrupt = interrupt

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Raise what ends the work, or else pass the report on."""
        self._interrupt()
        self._progress(phase, done, total)
