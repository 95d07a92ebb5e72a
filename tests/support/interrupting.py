"""Something happens at a line: the way a signal, Ctrl-C, the garbage collector or a fault comes between two lines."""

from __future__ import annotations

import linecache
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import windlass

Line = tuple[str, int]

_PACKAGE = str(Path(windlass.__file__).parent)
OURS = tuple(f"{_PACKAGE}/{room}/" for room in ("engine", "serve", "native", "weights", "models"))
"""The rooms whose lines are looked at, beside ``threading.py``, in which waits and thread starts can be interrupted."""


class Interrupter:
    """Follows the lines that one thread runs in ``files``; ``act`` is called before the first run of the line ``at``.

    Without ``at`` it only collects the ``lines``, in the order of their first run. What ``act`` raises is raised there.
    """

    def __init__(
        self,
        at: Line | None = None,
        act: Callable[[], None] | None = None,
        files: tuple[str, ...] = (*OURS, threading.__file__),
    ) -> None:
        self.lines: dict[Line, None] = {}
        self.fired = False
        self._at = at
        self._act = act
        self._files = files

    def __enter__(self) -> Interrupter:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG002
        return self._line if frame.f_code.co_filename.startswith(self._files) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG002
        if event == "line":
            line = (frame.f_code.co_filename, frame.f_lineno)
            if self._at is None:
                self.lines[line] = None
            elif line == self._at and not self.fired:
                self.fired = True
                if self._act is not None:
                    self._act()
        return self._line


def interrupt() -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def lines_of(run: Callable[[], Any], files: tuple[str, ...] = (*OURS, threading.__file__)) -> list[Line]:
    """Return the lines that ``run`` runs in this thread, at which something may happen.

    Not those that say ``try:``, which Python does not guard by anything, as nothing can be raised by them.
    """
    with Interrupter(files=files) as interrupter:
        run()
    return [line for line in interrupter.lines if linecache.getline(*line).strip() != "try:"]


def sample(lines: list[Line], most: int) -> list[Line]:
    """Return at most ``most`` of the lines, spread evenly."""
    step = max(1, -(-len(lines) // most))
    return lines[::step]
