"""Failing on purpose: the k-th time that something happens in the native core or in Python."""

from __future__ import annotations

import errno
import io
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from windlass.native import _core

NATIVE: Any = getattr(_core, "faults", None)
"""The native core's table of points of failure; None in a build without WINDLASS_TESTING."""

NATIVE_KINDS = ("mapping", "allocation", "thread", "pack", "operation", "piece")


def require_native() -> None:
    """Skip the tests of a module that needs the table, or fail under WINDLASS_REQUIRE_FAULTS."""
    if NATIVE is not None:
        return
    if os.environ.get("WINDLASS_REQUIRE_FAULTS") == "1":
        pytest.fail("WINDLASS_REQUIRE_FAULTS=1, but the native core was built without WINDLASS_TESTING")
    pytest.skip("the native core was built without WINDLASS_TESTING", allow_module_level=True)


@contextmanager
def native_fault(kind: str, turn: int) -> Iterator[Callable[[], bool]]:
    """Let the ``turn``-th point of this kind fail, once; yields whether it has."""
    NATIVE.arm(kind, turn)
    try:
        yield NATIVE.fired
    finally:
        NATIVE.disarm()


class Countdown:
    """Raises at the ``turn``-th call, once."""

    def __init__(self, turn: int, error: BaseException) -> None:
        self.left, self.error = turn, error

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error

    def fired(self) -> bool:
        """Whether it has raised."""
        return self.left <= 0


class _File:
    """An open file whose reads may fail."""

    def __init__(self, file: Any, before_read: Callable[[], None]) -> None:
        self._file, self._before_read = file, before_read

    def read(self, *arguments: Any) -> Any:
        self._before_read()
        return self._file.read(*arguments)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _failing_opens(patch: pytest.MonkeyPatch, point: Countdown) -> None:
    original = io.open

    def failing(*arguments: Any, **named: Any) -> Any:
        point()
        return original(*arguments, **named)

    patch.setattr(io, "open", failing)


def _failing_reads(patch: pytest.MonkeyPatch, point: Countdown) -> None:
    original = io.open
    patch.setattr(io, "open", lambda *arguments, **named: _File(original(*arguments, **named), point))


def _failing_mmaps(patch: pytest.MonkeyPatch, point: Countdown) -> None:
    original = mmap.mmap

    def failing(*arguments: Any, **named: Any) -> Any:
        point()
        return original(*arguments, **named)

    patch.setattr(mmap, "mmap", failing)


def _failing_thread_starts(patch: pytest.MonkeyPatch, point: Countdown) -> None:
    original = threading.Thread.start

    def failing(self: threading.Thread) -> None:
        if self.name.startswith("windlass"):
            point()
        original(self)

    patch.setattr(threading.Thread, "start", failing)


_PYTHON: dict[str, tuple[Callable[[pytest.MonkeyPatch, Countdown], None], Callable[[], BaseException]]] = {
    "open": (_failing_opens, lambda: OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
    "read": (_failing_reads, lambda: OSError(errno.EIO, os.strerror(errno.EIO))),
    "mmap": (_failing_mmaps, lambda: OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
    "thread start": (_failing_thread_starts, lambda: RuntimeError("can't start new thread")),
}
PYTHON_KINDS = tuple(_PYTHON)


@contextmanager
def python_fault(kind: str, turn: int) -> Iterator[Callable[[], bool]]:
    """Let the ``turn``-th opening, reading or mapping of a file, or start of an engine's thread, fail."""
    install, error = _PYTHON[kind]
    point = Countdown(turn, error())
    with pytest.MonkeyPatch.context() as patch:
        install(patch, point)
        yield point.fired


@contextmanager
def fault(kind: str, turn: int) -> Iterator[Callable[[], bool]]:
    """Either of the two."""
    with (native_fault if kind in NATIVE_KINDS else python_fault)(kind, turn) as fired:
        yield fired
