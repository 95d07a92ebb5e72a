"""The one exit hook: no engine outlives its interpreter."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable

from windlass.engine.loop import EngineCore

EXIT_SECONDS = 2.0
"""How long the exit of the interpreter waits for all engines together."""

_Ending = tuple[tuple[threading.Thread, ...], Callable[[], None]]
_running: weakref.WeakKeyDictionary[EngineCore, _Ending] = weakref.WeakKeyDictionary()


def stop_at_exit(core: EngineCore, threads: tuple[threading.Thread, ...], stop: Callable[[], None]) -> None:
    """Have ``core`` and then, by ``stop``, the rest of its engine stopped when the interpreter exits.

    Args:
        threads: all of the engine's daemon threads, which are joined.
        stop: leads to nothing that leads to the engine itself.
    """
    _running[core] = (threads, stop)


def forget(core: EngineCore) -> None:
    """Undo ``stop_at_exit``."""
    _running.pop(core, None)


@atexit.register
def _stop_all() -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    endings = []
    # A list of references is made at once; daemon threads may build and end engines meanwhile.
    for reference in _running.keyrefs():
        core = reference()
        ending = None if core is None or core.lifecycle.forked else _running.get(core)
        if core is not None and ending is not None:
            threads, stop = ending
            core.stop_silently(threads)
            stop()
            endings.append(threads)
    for threads in endings:
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
