"""How threads of an engine begin and end: starts that may have been interrupted, and the end of the interpreter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

START_SECONDS = 0.2
"""How long a thread may take from its start to its first step."""


END_SECONDS = 0.5
"""How long a thread of an engine that has done its work may take to end."""


class EngineThread(threading.Thread):
    """A daemon thread of an engine."""

    over = False
    """Whether its work is done; all that is left is for Python to see it off."""

    def __init__(self, target: Callable[..., None], name: str, arguments: tuple[object, ...] = ()) -> None:
        super().__init__(target=target, name=name, args=arguments, daemon=True)

    def run(self) -> None:
        """Do the work."""
        try:
            super().run()
        except EndOfThread:
            return
        finally:
            self.over = True


def join(thread: EngineThread) -> None:
    """Wait until the work of ``thread`` is done, and for the thread itself unless it cannot end.

    It cannot in a signal handler that came while its thread held a lock of ``threading``, as in the middle of a
    ``Thread.start``: every thread needs that lock for its last step.
    """
    while True:
        over = thread.over
        thread.join(END_SECONDS)
        if over or not thread.is_alive():
            return


class EndOfThread(BaseException):
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
