"""The one exit hook: no engine outlives its interpreter."""

from __future__ import annotations

import atexit
import threading
import time
import weakref

from windlass.engine.loop import EngineCore

EXIT_SECONDS = 2.0
"""How long the exit of the interpreter waits for all engines together."""

_running: weakref.WeakKeyDictionary[EngineCore, tuple[threading.Thread, ...]] = weakref.WeakKeyDictionary()


def stop_at_exit(core: EngineCore, threads: tuple[threading.Thread, ...]) -> None:
    """Have the loops of ``core`` stopped, and its daemon ``threads`` joined, when the interpreter exits."""
    _running[core] = threads


def forget(core: EngineCore) -> None:
    """Undo ``stop_at_exit``."""
    _running.pop(core, None)


@atexit.register
def _stop_all() -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    engines = [(core, threads) for core, threads in _running.items() if not core.lifecycle.forked]
    for core, _ in engines:
        core.stop_silently()
    for _, threads in engines:
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
