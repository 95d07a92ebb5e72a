"""An engine that fails, or gets stuck, is told to everybody: clients, probes and the exit code (L23, L25)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.http_streams import CHAT, ENDLESS, TEXT, Exchange, body_of, endings
from support.lifecycle import (
    LIMIT,
    MIDDLE,
    PROMPT,
    QUESTION,
    Gate,
    core_of,
    replace_run,
    slow_down,
    write_shape,
)
from support.server import DEMO, RunningServer, server_process, serving, until
from windlass import EngineConfig
from windlass.engine.state import EngineState
from windlass.program.executor import Batch
from windlass.server import run
from windlass.server.served import ModelSpec, ServedModel

BREAK = """
import windlass.engine.loop as loop
step = loop.EngineCore._step
def failing(self):
    self._turns_left = getattr(self, "_turns_left", 20) - 1
    if self._turns_left < 0:
        raise ValueError("an injected failure")
    step(self)
loop.EngineCore._step = failing
"""
"""Makes the engine of a process fail in its 21st step."""


def break_engine(server: RunningServer) -> None:
    """Make the next step fail."""

    def fail(_original: Callable[[Batch], Any], _batch: Batch) -> Any:
        raise ValueError("an injected failure")

    replace_run(server.engine, fail)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_L23_a_failure_is_told_to_everybody(path: str) -> None:
    with serving(enable_debug=True, failure_grace=LIMIT) as server:
        slow_down(server.engine)
        stream = Exchange(server.port, body_of(path, stream=True, **ENDLESS), path)
        first = stream.next_event()
        whole = Exchange(server.port, body_of(path, **ENDLESS), path)
        until(lambda: core_of(server.engine).num_open == 2)
        break_engine(server)
        with closing(stream):
            events = [first, *stream.rest()]
        assert endings(events) == ["engine_dead"]
        assert "injected" not in str(events)
        with closing(whole):
            assert whole.response.status == 503
            assert whole.response.headers["x-should-retry"] == "false"
            assert whole.json()["error"]["code"] == "engine_dead"
        for probe in ("/livez", "/readyz", "/health"):
            answer = server.request("GET", probe)
            assert (answer.status, answer.json["state"]) == (503, "failed")
        refused = server.request("POST", path, body_of(path))
        assert (refused.status, refused.json["error"]["code"]) == (503, "engine_dead")
        assert refused.headers["x-should-retry"] == "false"
        began = time.monotonic()
        server.stop()
        assert server.join() == 70
        assert time.monotonic() - began < 2 * PROMPT
        health = server.engine.health
        assert (health.state, health.is_busy) == (EngineState.TERMINATED, False)
        assert isinstance(health.failure, ValueError)


def test_L23_the_process_exits_with_70_after_the_grace() -> None:
    with server_process("--failure-grace", "0.5", "--enable-debug", code=BREAK) as server:
        server.wait_until_ready()
        with closing(Exchange(server.port, body_of(CHAT, stream=True, **ENDLESS))) as stream:
            assert endings(stream.rest()) == ["engine_dead"]
        assert server.request("GET", "/livez").status == 503
        assert server.wait() == 70
        assert any("an injected failure" in line for line in server.lines)


def test_L23_a_signal_ends_the_grace() -> None:
    with server_process("--failure-grace", "60", "--enable-debug", code=BREAK) as server:
        server.wait_until_ready()
        with closing(Exchange(server.port, body_of(CHAT, stream=True, **ENDLESS))) as stream:
            assert endings(stream.rest()) == ["engine_dead"]
        server.wait_for_line("an engine failed")
        server.send(signal.SIGTERM)
        assert server.wait() == 70


def test_L23_a_failure_during_the_drain_is_the_exit_code() -> None:
    with serving(enable_debug=True, drain_timeout=LIMIT, failure_grace=LIMIT) as server:
        slow_down(server.engine)
        with closing(Exchange(server.port, body_of(CHAT, stream=True, **ENDLESS))) as stream:
            stream.next_event()
            server.stop()
            until(lambda: server.request("GET", "/readyz").json["state"] == "draining")
            break_engine(server)
            assert endings(stream.rest()) == ["engine_dead"]
        assert server.join() == 70


def test_L23_the_other_models_of_a_server_whose_engine_failed_answer_to_the_end() -> None:
    other = ModelSpec("other", DEMO.config)
    with serving(DEMO, other, failure_grace=LIMIT) as server:
        break_engine(server)
        assert server.chat(QUESTION).status == 503
        assert server.chat(QUESTION, model="other").status == 200
        assert server.request("GET", "/livez").status == 503
        server.stop()
        assert server.join() == 70


def test_L25_livez_tells_of_an_engine_that_is_stuck_until_it_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WATCH_SECONDS", 0.05)
    with serving(enable_debug=True, stall_timeout=0.3) as server:
        gate = Gate(server.engine)
        with closing(Exchange(server.port, body_of(CHAT, stream=True, **{**ENDLESS, "max_tokens": 20}))) as stream:
            stream.next_event()
            assert server.request("GET", "/livez").status == 200
        gate.shut()
        with closing(Exchange(server.port, body_of(CHAT, stream=True, **{**ENDLESS, "max_tokens": 20}))) as stream:
            try:
                assert gate.held.wait(LIMIT)
                until(lambda: server.request("GET", "/livez").status == 503)
                assert server.request("GET", "/livez").json == {"status": "unavailable", "state": "stuck"}
                assert server.request("GET", "/readyz").status == 503
            finally:
                gate.open.set()
            assert endings(stream.rest()) == ["done"]
        until(lambda: server.request("GET", "/livez").status == 200)
        assert server.request("GET", "/readyz").status == 200


def test_L25_an_idle_engine_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WATCH_SECONDS", 0.02)
    with serving(stall_timeout=0.1) as server:
        for _ in range(20):
            time.sleep(0.02)
            assert server.request("GET", "/livez").status == 200


def test_L25_a_long_prefill_is_not_taken_for_a_stuck_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WATCH_SECONDS", 0.05)
    model = write_shape(tmp_path, **MIDDLE)
    config = EngineConfig(
        model=model, load_format="dummy", num_threads=1, prefill_chunk_size=2048, max_single_sequence_length=2304
    )
    with serving(ModelSpec("middle", config), stall_timeout=0.3) as server:
        core = core_of(server.engine)
        body = {"prompt": list(range(100, 2100)), "max_tokens": 1}
        with closing(Exchange(server.port, body, TEXT)) as exchange:
            until(lambda: core.num_open == 1)
            ended = time.monotonic() + 0.8
            while time.monotonic() < ended:
                assert server.request("GET", "/livez").status == 200
                time.sleep(0.05)
            assert core.num_open == 1, "the prefill was too short to tell"
            exchange.leave()


def test_L25_time_in_which_the_process_was_stopped_does_not_count() -> None:
    class Busy:
        class health:  # noqa: N801
            failure, is_busy, progress = None, True, 7

    model = ServedModel(DEMO)
    model._engine = Busy()  # type: ignore[assignment]
    for _ in range(4):
        model.look(0.25)
    assert model.still_for == pytest.approx(0.75)
    Busy.health.progress = 8
    model.look(0.25)
    assert model.still_for == 0
