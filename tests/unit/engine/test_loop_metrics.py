"""What the core counts of what it does."""

from __future__ import annotations

import json
import time

import pytest

from support.fakes import LIMIT, CountingExecutor, make_request, running
from windlass.engine.state import EngineState
from windlass.engine.tracing import TraceRecorder
from windlass.errors import RequestTimeoutError


def test_an_answer_is_counted_before_it_is_known() -> None:
    trace = TraceRecorder()
    with running(CountingExecutor(64), trace=trace) as core:
        for number in range(20):
            request, output = make_request(prompt=4, start=number, max_tokens=5)
            core.add_request((request,))
            assert output.ended.wait(LIMIT)
            metrics = core.metrics()
            assert metrics.requests_finished["length"] == number + 1
            assert metrics.completion_tokens_sum == 5 * (number + 1)
            assert metrics.num_requests_running == 0
            assert metrics.num_pages_held == 0
    names = [event["name"] for event in json.loads(trace.json())["traceEvents"]]
    assert names.count("request") == 40
    assert names.count("step") == 100


def test_preemptions_are_counted() -> None:
    with running(CountingExecutor(6)) as core:
        pairs = [make_request(f"r{i}", prompt=14, start=i, max_tokens=60) for i in range(4)]
        for request, _ in pairs:
            core.add_request((request,))
        for _, output in pairs:
            assert output.ended.wait(LIMIT)
        assert core.metrics().num_preemptions > 0
        assert core.metrics().completion_tokens_sum == 240


@pytest.mark.parametrize("cause", ["caller", "timeout", "reset", "unload"])
def test_aborts_are_counted_by_cause(cause: str) -> None:
    executor = CountingExecutor(64)
    with running(executor) as core:
        executor.gate.clear()
        request, output = make_request(prompt=4, max_tokens=60)
        if cause == "timeout":
            request.deadline = time.monotonic() + 0.05
        core.add_request((request,))
        assert executor.running.wait(LIMIT)
        if cause == "caller":
            core.abort_request("r")
        elif cause == "reset":
            core.reset()
        elif cause == "unload":
            core.unload()
        assert output.ended.wait(LIMIT)
        assert (cause == "timeout") == isinstance(output.error, RequestTimeoutError)
        executor.gate.set()
        assert core.wait_until_idle(LIMIT)
        core.num_free_pages()
        counted = {name: count for name, count in core.metrics().requests_aborted.items() if count}
        # Whoever resets an engine resets its counters too.
        assert counted == ({} if cause == "reset" else {cause: 1})
        assert core.metrics().num_cancelled_steps <= 1
        if cause == "unload":
            assert core.metrics().num_pages == 0


def test_a_failure_is_counted() -> None:
    with running(CountingExecutor(64, fail_at=3)) as core:
        request, output = make_request(prompt=4, max_tokens=60)
        core.add_request((request,))
        assert output.ended.wait(LIMIT)
        core._perform(lambda: None)
        assert core.metrics().requests_aborted["failure"] == 1
        assert core.metrics().state is EngineState.FAILED
        assert core.metrics().completion_tokens_sum == 2
