"""The lifecycle's ways, and what each state says to a request."""

from __future__ import annotations

import itertools

import pytest

from windlass.engine.state import ALLOWED, EngineState, Lifecycle
from windlass.errors import EngineFailedError, EngineTerminatedError, EngineUnloadedError

S = EngineState

WAYS = {
    S.LOADING: [],
    S.READY: [S.READY],
    S.UNLOADED: [S.READY, S.UNLOADED],
    S.DRAINING: [S.READY, S.DRAINING],
    S.FAILED: [S.READY, S.FAILED],
    S.TERMINATING: [S.READY, S.TERMINATING],
    S.TERMINATED: [S.READY, S.TERMINATING, S.TERMINATED],
}


def at(state: EngineState) -> Lifecycle:
    lifecycle = Lifecycle()
    for step in WAYS[state]:
        assert lifecycle.advance(step, ValueError("the cause") if step is S.FAILED else None)
    assert lifecycle.current is state
    return lifecycle


@pytest.mark.parametrize(("start", "end"), list(itertools.product(S, S)))
def test_only_the_allowed_ways_exist(start: EngineState, end: EngineState) -> None:
    lifecycle = at(start)
    assert lifecycle.advance(end) == (end in ALLOWED[start])
    assert lifecycle.current is (end if end in ALLOWED[start] else start)


def test_nothing_follows_an_end_but_the_next_end() -> None:
    assert ALLOWED[S.TERMINATED] == frozenset()
    assert ALLOWED[S.TERMINATING] == {S.TERMINATED}
    assert ALLOWED[S.FAILED] == {S.TERMINATING}
    for state in (S.LOADING, S.READY, S.UNLOADED, S.DRAINING):
        assert {S.TERMINATING, S.FAILED} <= ALLOWED[state]


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (S.LOADING, EngineUnloadedError),
        (S.UNLOADED, EngineUnloadedError),
        (S.DRAINING, EngineTerminatedError),
        (S.TERMINATING, EngineTerminatedError),
        (S.TERMINATED, EngineTerminatedError),
        (S.FAILED, EngineFailedError),
    ],
)
def test_refusals_name_the_state_and_what_to_do(state: EngineState, error: type[Exception]) -> None:
    refusal = at(state).refusal()
    assert type(refusal) is error
    assert state.value in str(refusal)
    assert at(S.READY).refusal() is None


def test_the_cause_of_a_failure_stays_known_after_termination() -> None:
    lifecycle = at(S.FAILED)
    lifecycle.advance(S.TERMINATING)
    refusal = lifecycle.refusal()
    assert isinstance(refusal, EngineTerminatedError)
    assert isinstance(refusal.__cause__, ValueError)


def test_an_interrupted_way_does_not_undo_an_end() -> None:
    """As when a signal handler terminates in the middle of ``advance``."""
    lifecycle = at(S.READY)
    with lifecycle._lock:
        assert lifecycle.advance(S.TERMINATING)
        lifecycle._life = S.DRAINING
    assert lifecycle.current is S.TERMINATING
