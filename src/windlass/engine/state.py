"""The lifecycle of an engine: one enum, one lock, and the refusals that name the state."""

from __future__ import annotations

import enum
import os
import threading
from dataclasses import dataclass

from windlass.errors import (
    EngineError,
    EngineFailedError,
    EngineForkedError,
    EngineTerminatedError,
    EngineUnloadedError,
)


class EngineState(enum.Enum):
    """Where an engine is in its life; see ``ALLOWED`` for the ways between."""

    LOADING = "loading"
    READY = "ready"
    UNLOADED = "unloaded"
    DRAINING = "draining"
    TERMINATING = "terminating"
    TERMINATED = "terminated"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """What can be told of an engine from outside, whatever its threads are doing.

    Attributes:
        state: where it is in its life.
        failure: what made it fail, also once it has been terminated; None when nothing did.
        is_busy: whether it has accepted calls that are not finished.
        progress: a counter that changes while it gets on. A busy engine where it stands still for seconds is stuck.
    """

    state: EngineState
    failure: BaseException | None
    is_busy: bool
    progress: int


_ENDS = frozenset({EngineState.FAILED, EngineState.TERMINATING, EngineState.TERMINATED})
_ENDING = frozenset({EngineState.DRAINING, EngineState.TERMINATING, EngineState.FAILED})

ALLOWED: dict[EngineState, frozenset[EngineState]] = {
    EngineState.LOADING: _ENDING | {EngineState.READY, EngineState.UNLOADED},
    EngineState.READY: _ENDING | {EngineState.LOADING, EngineState.UNLOADED},
    EngineState.UNLOADED: _ENDING | {EngineState.LOADING},
    EngineState.DRAINING: frozenset({EngineState.TERMINATING, EngineState.FAILED}),
    EngineState.FAILED: frozenset({EngineState.TERMINATING}),
    EngineState.TERMINATING: frozenset({EngineState.TERMINATED}),
    EngineState.TERMINATED: frozenset(),
}
"""From each state, the states that may follow."""


class Lifecycle:
    """The state of one engine. Safe from any thread, and from a signal handler that interrupts its own methods."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._life = EngineState.LOADING
        # Apart from _life, so that an interrupted way between two living states cannot undo an end.
        self._end: EngineState | None = None
        self.cause: BaseException | None = None

    @property
    def current(self) -> EngineState:
        """The state; takes no lock."""
        return self._end or self._life

    def advance(self, state: EngineState, cause: BaseException | None = None) -> bool:
        """Move to ``state`` when that way exists; return whether it did. ``cause`` belongs to FAILED."""
        with self._lock:
            if state not in ALLOWED[self.current]:
                return False
            if state is EngineState.FAILED:
                self.cause = cause
            if state in _ENDS:
                self._end = state
            else:
                self._life = state
            return True

    @property
    def forked(self) -> bool:
        """True in a child process that inherited the engine by ``fork``."""
        return os.getpid() != self._pid

    def refusal(self) -> EngineError | None:
        """Return why a request cannot be accepted now, or None when it can."""
        if self.forked:
            return self.foreign()
        state = self.current
        if state is EngineState.READY:
            return None
        if state is EngineState.UNLOADED:
            return EngineUnloadedError("the engine is unloaded: no model; call reload() first")
        if state is EngineState.LOADING:
            return EngineUnloadedError("the engine is loading its model; try again when its state is ready")
        if state is EngineState.FAILED:
            return self.failure()
        return self.terminated()

    def foreign(self) -> EngineForkedError:
        """Return the error for everything that a forked child tries."""
        return EngineForkedError(
            "this engine belongs to the parent process; build an engine in the child, or start it with 'spawn'"
        )

    def terminated(self) -> EngineTerminatedError:
        """Return the error for everything that ends, or is refused, because of termination."""
        error = EngineTerminatedError(f"the engine is {self.current.value}; build a new engine to go on")
        error.__cause__ = self.cause
        return error

    def failure(self) -> EngineFailedError:
        """Return the error for everything that ends, or is refused, because the engine failed."""
        error = EngineFailedError(
            f"the engine failed ({type(self.cause).__name__}: {self.cause}); terminate it and build a new one"
        )
        error.__cause__ = self.cause
        return error
