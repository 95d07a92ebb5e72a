"""Giving memory back."""

from __future__ import annotations

import ctypes
import sys
import traceback


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
