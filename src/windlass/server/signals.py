"""Signals for an event loop that is busy."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Sequence

_MOST = 4096


@contextlib.contextmanager
def signals_call(callback: Callable[[], None], numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Have the running event loop call ``callback`` once per signal. In the main thread only.

    ``loop.add_signal_handler`` sends signals through the pipe that also wakes the loop for other threads. Streams wake
    it more often than that pipe holds when the loop is slow for a moment, and a signal that comes then is lost. These
    have a pipe of their own.
    """
    loop = asyncio.get_running_loop()
    receiving, sending = socket.socketpair()
    with receiving, sending:
        receiving.setblocking(False)
        sending.setblocking(False)

        def read() -> None:
            for _ in receiving.recv(_MOST):
                callback()

        loop.add_reader(receiving, read)
        previous_descriptor = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
        # The byte in the pipe is what counts; a handler there must be, or the signal would do what it does by default.
        previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_descriptor)
            loop.remove_reader(receiving)
