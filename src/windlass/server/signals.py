"""The signals that end a server. Light to import, so that they are noted while everything else is still imported."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """SIGTERM and SIGINT, noted from the beginning of a ``with`` block on. For the main thread.

    At the end of the block they do what they did before; unless it ends well and, with ``process_ends``, the process
    too: then they are ignored, so that a late one does not change how it ends.

    Python's own handlers are used, and not those of asyncio, since these leave a moment at their end in which a signal
    kills. As the first process of a container, where signals without a handler do nothing, there are no others.
    """

    def __init__(self, *, process_ends: bool) -> None:
        self._process_ends = process_ends
        self._early = 0
        self._listener: Callable[[], None] | None = None

    def listen(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called at every signal, between any two instructions; now, for those that came before."""
        self._listener = listener
        while self._early:
            self._early -= 1
            listener()

    def __enter__(self) -> Signals:
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, signal.SIG_IGN if kind is None and self._process_ends else previous)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self._listener is None:
            self._early += 1
        else:
            self._listener()
