"""The core and its two loops, on a model that counts."""

from __future__ import annotations

import threading
import time

import pytest

from support.fakes import LIMIT, CountingExecutor, expected_tokens, make_request, running
from windlass.engine.loop import MAX_RERUNS, EngineCore
from windlass.engine.request import FinishReason
from windlass.engine.runtime import Runtime
from windlass.engine.state import EngineState
from windlass.errors import (
    EngineFailedError,
    EngineTerminatedError,
    InvalidRequestError,
    RequestAbortedError,
)


def test_many_requests_at_once_each_get_their_own_tokens() -> None:
    with running(CountingExecutor(64)) as core:
        pairs = [make_request(f"r{i}", prompt=1 + 7 * i % 50, start=i, max_tokens=1 + i % 20) for i in range(40)]
        for request, _ in pairs:
            core.add_request((request,))
        for request, output in pairs:
            assert output.ended.wait(LIMIT)
            assert output.token_ids == expected_tokens(request)
            assert output.reason is FinishReason.LENGTH
        assert core.wait_until_idle(LIMIT)
        assert core.num_open == 0
        assert core.num_free_pages() == 64


def test_preemption_changes_no_tokens() -> None:
    with running(CountingExecutor(6)) as core:
        pairs = [make_request(f"r{i}", prompt=14, start=i, max_tokens=60) for i in range(4)]
        for request, _ in pairs:
            core.add_request((request,))
        for request, output in pairs:
            assert output.ended.wait(LIMIT)
            assert output.token_ids == expected_tokens(request)


def test_a_stop_token_ends_without_being_delivered() -> None:
    with running(CountingExecutor(8)) as core:
        request, output = make_request(prompt=4, stop=(6,))
        core.add_request((request,))
        assert output.ended.wait(LIMIT)
        assert output.token_ids == [4, 5]
        assert output.reason is FinishReason.STOP


def test_abort_ends_one_request_and_leaves_the_others() -> None:
    executor = CountingExecutor(64)
    executor.gate.clear()
    with running(executor) as core:
        kept, kept_output = make_request("kept", max_tokens=30)
        cut, cut_output = make_request("cut", max_tokens=30)
        core.add_request((kept,))
        core.add_request((cut,))
        assert executor.running.wait(LIMIT)
        core.abort_request("cut")
        core.abort_request("cut")
        core.abort_request("never heard of")
        assert isinstance(cut_output.error, RequestAbortedError)
        executor.gate.set()
        assert kept_output.ended.wait(LIMIT)
        assert kept_output.token_ids == expected_tokens(kept)
        assert core.wait_until_idle(LIMIT)
        assert core.num_free_pages() == 64


def test_an_abort_before_the_admission_is_honoured() -> None:
    executor = CountingExecutor(8)
    executor.gate.clear()
    with running(executor) as core:
        first, first_output = make_request("first")
        core.add_request((first,))
        assert executor.running.wait(LIMIT)
        second, second_output = make_request("second")
        core.add_request((second,))
        core.abort_request("second")
        executor.gate.set()
        assert first_output.ended.wait(LIMIT)
        assert core.wait_until_idle(LIMIT)
        assert second_output.token_ids == []
        assert isinstance(second_output.error, RequestAbortedError)


def test_a_request_id_in_use_is_refused_and_free_again_later() -> None:
    executor = CountingExecutor(8)
    executor.gate.clear()
    with running(executor) as core:
        first, first_output = make_request("x")
        core.add_request((first,))
        with pytest.raises(InvalidRequestError, match="in use"):
            core.add_request((make_request("x")[0],))
        executor.gate.set()
        assert first_output.ended.wait(LIMIT)
        assert core.wait_until_idle(LIMIT)
        again, again_output = make_request("x")
        core.add_request((again,))
        assert again_output.ended.wait(LIMIT)


def test_exit_tells_every_consumer_once_also_in_the_middle_of_a_step() -> None:
    executor = CountingExecutor(64)
    executor.gate.clear()
    with running(executor) as core:
        pairs = [make_request(f"r{i}") for i in range(10)]
        for request, _ in pairs:
            core.add_request((request,))
        assert executor.running.wait(LIMIT)
        core.exit_background_loop()
        for _, output in pairs:
            assert isinstance(output.error, EngineTerminatedError)
        with pytest.raises(EngineTerminatedError):
            core.add_request((make_request("late")[0],))
    assert all(output.endings == 1 for _, output in pairs)
    assert core.num_open == 0 or all(output.ended.is_set() for _, output in pairs)


def test_a_failing_step_tells_every_waiter_the_cause() -> None:
    with running(CountingExecutor(64, fail_at=3)) as core:
        pairs = [make_request(f"r{i}", max_tokens=50) for i in range(3)]
        outputs = []
        for request, output in pairs:
            try:
                core.add_request((request,))
            except EngineFailedError:
                continue
            outputs.append(output)
        assert outputs
        for output in outputs:
            assert output.ended.wait(LIMIT)
            assert isinstance(output.error, EngineFailedError)
            assert isinstance(output.error.__cause__, ValueError)
            assert "injected failure" in str(output.error)
        assert core.lifecycle.current is EngineState.FAILED
        with pytest.raises(EngineFailedError):
            core.add_request((make_request("late")[0],))


def test_an_output_that_raises_fails_alone() -> None:
    with running(CountingExecutor(64)) as core:
        bad, bad_output = make_request("bad")
        good, good_output = make_request("good")

        def broken(token_id: int, _: object) -> None:
            raise KeyError(token_id)

        bad_output.put = broken  # type: ignore[method-assign]
        core.add_request((bad,))
        core.add_request((good,))
        assert good_output.ended.wait(LIMIT)
        assert bad_output.ended.wait(LIMIT)
        assert good_output.token_ids == expected_tokens(good)
        assert isinstance(bad_output.error, RequestAbortedError)
        assert core.lifecycle.current is EngineState.READY


def test_adding_while_others_exit_loses_no_request() -> None:
    """Whatever the timing, a request either is refused or ends; run many times, since the window is small."""
    for _ in range(50):
        with running(CountingExecutor(64)) as core:
            outputs = []
            refused = threading.Event()

            def add(core: EngineCore = core, outputs: list = outputs, refused: threading.Event = refused) -> None:
                for i in range(1000):
                    request, output = make_request(f"r{i}")
                    try:
                        core.add_request((request,))
                    except EngineTerminatedError:
                        refused.set()
                        return
                    outputs.append(output)

            thread = threading.Thread(target=add)
            thread.start()
            core.exit_background_loop()
            thread.join(LIMIT)
            assert refused.is_set() or len(outputs) == 1000
            for output in outputs:
                assert output.ended.wait(LIMIT)
                assert output.endings == 1


def test_aborts_that_leave_nobody_cut_every_step_short() -> None:
    """Only a step that is run again for somebody is cut short so many times and no more."""
    executor = CountingExecutor(64)
    executor.gate.clear()
    with running(executor) as core:
        for number in range(2 * MAX_RERUNS + 1):
            request, output = make_request(f"r{number}")
            core.add_request((request,))
            assert executor.running.wait(LIMIT)
            core.abort_request(request.request_id)
            deadline = time.monotonic() + LIMIT
            while core.num_open:
                assert time.monotonic() < deadline, "the step was not cut short"
                time.sleep(0.001)
            assert output.ended.is_set()


def test_unload_frees_the_model_and_reload_serves_another() -> None:
    first, second = CountingExecutor(64), CountingExecutor(8)
    first.gate.clear()
    with running(first) as core:
        cut, cut_output = make_request("cut", max_tokens=500)
        core.add_request((cut,))
        assert first.running.wait(LIMIT)
        core.unload()
        assert first.closed
        assert isinstance(cut_output.error, RequestAbortedError)
        assert core.num_open == 0
        core.unload()
        core.reload(Runtime.build(second, num_pages=8, max_num_sequence=2, max_tokens=32, active_vocab_size=64))
        request, output = make_request("next")
        core.add_request((request,))
        assert output.ended.wait(LIMIT)
        assert output.token_ids == expected_tokens(request)
        assert core.num_free_pages() == 8
    assert second.closed


def test_commands_after_the_end_are_carried_out_by_their_caller() -> None:
    with running(CountingExecutor(8)) as core:
        pass
    late = CountingExecutor(8)
    core.reload(Runtime.build(late, num_pages=8, max_num_sequence=2, max_tokens=32, active_vocab_size=64))
    assert late.closed
    core.unload()
    assert core.num_free_pages() == 0


def test_reset_aborts_everything_and_serving_goes_on() -> None:
    executor = CountingExecutor(64)
    executor.gate.clear()
    with running(executor) as core:
        outputs = []
        for i in range(6):
            request, output = make_request(f"r{i}", max_tokens=500)
            core.add_request((request,))
            outputs.append(output)
        assert executor.running.wait(LIMIT)
        core.reset()
        executor.gate.set()
        assert all(isinstance(output.error, RequestAbortedError) for output in outputs)
        assert core.wait_until_idle(LIMIT)
        assert core.num_free_pages() == 64
        request, output = make_request("after")
        core.add_request((request,))
        assert output.ended.wait(LIMIT)
        assert output.token_ids == expected_tokens(request)
