"""A signal drains the server: what was accepted finishes, what comes is refused, and the end has a limit (L22, L3)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.baseline import Baseline
from support.http_streams import CHAT, ENDLESS, TEXT, Exchange, body_of, endings
from support.lifecycle import LIMIT, PROMPT, QUESTION, Gate, core_of, slow_down
from support.server import RunningServer, server_process, serving, until
from support.sockets import open_requests
from windlass.engine.state import EngineState
from windlass.server import run

FINITE = {**ENDLESS, "max_tokens": 60}


@contextmanager
def slow_server(seconds: float = 0.004, **settings: Any) -> Iterator[RunningServer]:
    """A server whose steps take ``seconds`` longer."""
    with serving(enable_debug=True, **settings) as server:
        slow_down(server.engine, seconds)
        yield server


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    with connection.makefile("rb") as file:
        return file.read()


def refusal(answer: Any) -> tuple[int, str, bool]:
    return answer.status, answer.json["error"]["code"], "retry-after" in answer.headers


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_L22_open_requests_finish_and_new_ones_are_refused(path: str) -> None:
    with slow_server() as server, ExitStack() as exchanges:
        idle = exchanges.enter_context(closing(Exchange(server.port, path="/livez", method="GET")))
        assert idle.response.read()
        stream = exchanges.enter_context(closing(Exchange(server.port, body_of(path, stream=True, **FINITE), path)))
        first = stream.next_event()
        whole = exchanges.enter_context(closing(Exchange(server.port, body_of(path, **FINITE), path)))
        until(lambda: core_of(server.engine).num_open == 2)
        server.stop()
        until(lambda: server.request("GET", "/readyz").status == 503)
        assert server.request("GET", "/readyz").json["state"] == "draining"
        assert server.request("GET", "/livez").status == 200
        refused = server.request("POST", path, body_of(path))
        assert refusal(refused) == (503, "draining", True)
        idle.connection.request("POST", path, json.dumps(body_of(path)), {"Content-Type": "application/json"})
        again = idle.connection.getresponse()
        assert (again.status, json.loads(again.read())["error"]["code"]) == (503, "draining")
        events = [first, *stream.rest()]
        assert endings(events) == ["done"]
        assert [event["choices"][0]["finish_reason"] for event in events[:-1]].count("length") == 1
        assert whole.json()["choices"][0]["finish_reason"] == "length"
        assert server.join() == 0


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_L22_what_outlasts_the_drain_gets_an_error_event_or_503(path: str, signals: int) -> None:
    with slow_server(drain_timeout=0.2 if signals == 1 else LIMIT) as server, ExitStack() as exchanges:
        stream = exchanges.enter_context(closing(Exchange(server.port, body_of(path, stream=True, **ENDLESS), path)))
        stream.next_event()
        whole = exchanges.enter_context(closing(Exchange(server.port, body_of(path, **ENDLESS), path)))
        until(lambda: core_of(server.engine).num_open == 2)
        for _ in range(signals):
            server.stop()
        events = stream.rest()
        assert endings(events) == ["draining"]
        assert set(events[-1]) == {"error"}
        assert whole.response.status == 503
        assert whole.response.headers["retry-after"]
        assert whole.json()["error"]["code"] == "draining"
        assert server.join() == 0


def test_L22_a_second_signal_cuts_the_drain_short_and_a_third_does_no_harm() -> None:
    with slow_server(0.01, drain_timeout=LIMIT) as server:
        exchanges = [Exchange(server.port, body_of(CHAT, stream=True, **ENDLESS)) for _ in range(4)]
        for exchange in exchanges:
            exchange.next_event()
        server.stop()
        until(lambda: server.request("GET", "/readyz").status == 503)
        assert core_of(server.engine).num_open == 4
        began = time.monotonic()
        server.stop()
        server.stop()
        for exchange in exchanges:
            assert endings(exchange.rest()) == ["draining"]
            exchange.close()
        assert server.join() == 0
        assert time.monotonic() - began < 3 * PROMPT


def test_L22_a_request_whose_body_is_still_arriving_is_refused() -> None:
    with (
        slow_server(drain_timeout=LIMIT) as server,
        closing(socket.create_connection(("127.0.0.1", server.port))) as half,
    ):
        half.settimeout(LIMIT)
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        )
        half.sendall(head.encode() + b"{")
        until(lambda: open_requests(server) == 1)
        server.stop()
        answer = read_all(half)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"draining"' in answer
        assert server.join() == 0


def test_L22_a_body_that_ends_during_the_drain_is_refused() -> None:
    with slow_server(drain_timeout=LIMIT) as server, ExitStack() as stack:
        stream = stack.enter_context(closing(Exchange(server.port, body_of(CHAT, stream=True, **ENDLESS))))
        stream.next_event()
        half = stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT)))
        data = json.dumps(body_of(CHAT)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        half.sendall(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data[:10])
        server.stop()
        until(lambda: server.request("GET", "/readyz").status == 503)
        half.sendall(data[10:])
        answer = read_all(half)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"draining"' in answer
        server.stop()
        assert endings(stream.rest()) == ["draining"]


def test_L22_whoever_waits_for_a_sequence_is_served_too() -> None:
    with slow_server(drain_timeout=LIMIT) as server:
        exchanges = [
            Exchange(server.port, body_of(CHAT, stream=True, **{**FINITE, "max_tokens": 20})) for _ in range(12)
        ]
        until(lambda: core_of(server.engine).num_open == 12)
        server.stop()
        for exchange in exchanges:
            assert endings(exchange.rest()) == ["done"]
            exchange.close()
        assert server.join() == 0


def test_L22_a_client_that_does_not_read_holds_the_end_up_for_a_moment_only() -> None:
    with slow_server(seconds=0.0005) as server, closing(socket.create_connection(("127.0.0.1", server.port))) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        fields = {**ENDLESS, "logprobs": True, "top_logprobs": 20, "n": 4}
        data = json.dumps(body_of(CHAT, stream=True, **fields)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        deaf.sendall(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        until(lambda: core_of(server.engine).num_open == 1)
        until(lambda: core_of(server.engine).num_open == 0)
        began = time.monotonic()
        server.stop()
        assert server.join() == 0
        assert time.monotonic() - began < 8


def test_L22_the_process_holds_what_it_held_before() -> None:
    for _ in range(3):  # what libraries keep for ever
        with serving() as server:
            server.chat(QUESTION)
    before = Baseline()
    for _ in range(5):
        with slow_server() as server, ExitStack() as stack:
            stream = stack.enter_context(closing(Exchange(server.port, body_of(CHAT, stream=True, **ENDLESS))))
            stream.next_event()
            server.chat(QUESTION)
            server.stop()
            server.stop()
            assert endings(stream.rest()) == ["draining"]
            server.join()
    before.check()
    before.check_memory()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_L22_a_process_with_open_streams_ends_with_0(number: signal.Signals) -> None:
    with server_process("--enable-debug", "--drain-timeout", "0.1") as server:
        server.wait_until_ready()
        exchanges = [Exchange(server.port, body_of(CHAT, stream=True, n=4, **ENDLESS)) for _ in range(8)]
        for exchange in exchanges:
            exchange.next_event()
        server.send(number)
        for exchange in exchanges:
            assert endings(exchange.rest()) in (["draining"], ["done"])
            exchange.close()
        assert server.wait() == 0
        assert server.lines[2:] == []


def test_L22_signals_at_any_time_end_it_with_0() -> None:
    with server_process() as server:
        server.wait_until_ready()
        for _ in range(20):
            if server.process.poll() is None:
                server.send(signal.SIGTERM)
                time.sleep(0.005)
        assert server.wait() == 0
        assert server.lines[2:] == []


def test_L22_a_stuck_engine_does_not_keep_the_server_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "END_SECONDS", 0.5)
    with serving(enable_debug=True, drain_timeout=0.1) as server:
        gate = Gate(server.engine)
        gate.shut()
        exchange = Exchange(server.port, body_of(CHAT, stream=True, **ENDLESS))
        assert gate.held.wait(LIMIT)
        began = time.monotonic()
        server.stop()
        assert endings(exchange.rest()) == ["draining"]
        exchange.close()
        try:
            assert server.join() == 70
            assert time.monotonic() - began < 8
        finally:
            gate.open.set()
        until(lambda: server.engine.state is EngineState.TERMINATED)


def test_L22_idle_connections_are_closed() -> None:
    with serving() as server, closing(Exchange(server.port, path="/livez", method="GET")) as idle:
        assert idle.response.read()
        server.stop()
        assert idle.socket.recv(1) == b""
        assert server.join() == 0


def test_L22_as_the_first_process_of_a_namespace() -> None:
    # As in a container: signals without a handler do nothing there.
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let the tests make a process namespace")
    with server_process(prefix=unshare) as server:
        server.wait_until_ready()
        outer = server.process.pid
        (inner,) = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        os.kill(int(inner), signal.SIGTERM)
        assert server.wait() == 0
