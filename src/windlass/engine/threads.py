"""How threads of an engine begin and end: starts that may have been interrupted, and the end of the interpreter."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

START_SECONDS = 0.2
"""How long a thread may take from its start to its first step."""


class EndOfThread(SystemExit):
    """Ends a thread of an engine, in the middle of whatever it does for a caller, because the interpreter exits."""


def join_started(threads: Iterable[threading.Thread]) -> None:
    """Wait for the end of those ``threads`` that run or are about to.

    After an exception in ``Thread.start`` a thread may be under way all the same: only the wait for it was interrupted.
    ``threading.enumerate`` knows such a thread, and one that the system refused it does not know; one that was
    interrupted just before the system was asked it takes for under way for ever, so this is not waited for long.
    """
    for thread in threads:
        give_up = time.monotonic() + START_SECONDS
        while not thread.is_alive() and thread in threading.enumerate() and time.monotonic() < give_up:
            time.sleep(0.001)
        if thread.is_alive():
            thread.join()
