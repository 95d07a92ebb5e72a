"""A server as a process: its port opens early; what goes wrong at the start is one line and an exit code (L21)."""

from __future__ import annotations

import asyncio
import http.client
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from support.baseline import Baseline
from support.http_streams import CHAT, body_of
from support.lifecycle import ANSWER, LIMIT, MIDDLE, PROMPT, QUESTION, write_shape
from support.server import DEMO, RunningServer, server_process, serving, until
from windlass import EngineConfig
from windlass.server.served import ModelSpec, ServedModel
from windlass.server.settings import ServerSettings
from windlass.server.signals import SIGNALS, Signals

WAIT_IN_LOAD = """
import windlass.serve.engine_base as base, time
load = base._load
def slow(settings, interrupt):
    while True:
        interrupt()
        time.sleep(0.01)
base._load = slow
"""
"""Makes the load of a process take for ever."""


@contextmanager
def loading_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RunningServer, asyncio.Event]]:
    """A server whose load waits for the event, which belongs to its loop."""
    begin = asyncio.Event()
    load = ServedModel.load

    async def wait_and_load(self: ServedModel) -> None:
        await begin.wait()
        await load(self)

    monkeypatch.setattr(ServedModel, "load", wait_and_load)
    server = RunningServer((DEMO,), ServerSettings(port=0))
    try:
        yield server, begin
    finally:
        if server.exit_code is None:
            server.stop()
            server.join()


def test_L21_the_port_is_open_while_the_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    with loading_server(monkeypatch) as (server, begin):
        assert server.request("GET", "/livez").status == 200
        for probe in ("/readyz", "/health"):
            answer = server.request("GET", probe)
            assert (answer.status, answer.json["state"]) == (503, "loading")
        refused = server.chat(QUESTION)
        assert (refused.status, refused.json["error"]["code"]) == (503, "model_not_ready")
        assert "retry-after" in refused.headers
        server._loop.call_soon_threadsafe(begin.set)
        until(lambda: server.request("GET", "/readyz").status == 200)
        assert server.chat(QUESTION, temperature=0).json["choices"][0]["message"]["content"] == ANSWER


def test_L21_a_signal_cuts_the_load_short(tmp_path: Path) -> None:
    with serving() as warm:  # what libraries keep for ever
        warm.chat(QUESTION)
    before = Baseline()
    config = EngineConfig(model=write_shape(tmp_path, **MIDDLE), load_format="dummy", num_threads=1)
    server = RunningServer((ModelSpec("middle", config),), ServerSettings(port=0))
    until(lambda: server.request("GET", "/readyz").json["state"] == "loading")
    began = time.monotonic()
    server.stop()
    assert server.join() == 0
    assert time.monotonic() - began < 2 * PROMPT
    before.check()


@pytest.mark.parametrize("number", SIGNALS)
def test_L21_a_signal_during_the_load_ends_the_process_with_0(number: signal.Signals) -> None:
    with server_process(code=WAIT_IN_LOAD) as server:
        assert server.request("GET", "/readyz").json["state"] == "loading"
        server.send(number)
        assert server.wait() == 0
        assert len(server.lines) == 1


def test_L21_a_signal_that_comes_while_modules_are_imported_is_not_lost() -> None:
    heard: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), Signals(process_ends=True) as signals:
        signal.raise_signal(signal.SIGTERM)
        signals.listen(lambda: heard.append("early"))
        assert heard == ["early"]
        signals.listen(lambda: heard.append("late"))
        signal.raise_signal(signal.SIGINT)
        assert heard == ["early", "late"]
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_L21_when_all_is_done_a_signal_changes_nothing() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with Signals(process_ends=False):
            pass
        assert before == {number: signal.getsignal(number) for number in SIGNALS}
        with Signals(process_ends=True):
            pass
        for number in SIGNALS:
            signal.raise_signal(number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("files", [None, {"config.json": "{"}])
def test_L21_a_model_that_cannot_be_loaded_is_one_line_and_1(tmp_path: Path, files: dict[str, str] | None) -> None:
    model = tmp_path / "model"
    if files is not None:
        model.mkdir()
        for name, text in files.items():
            (model / name).write_text(text)
    with server_process(str(model)) as server:
        assert server.wait() == 1
        (listening, error) = server.lines
        assert listening.startswith("windlass listens on ")
        assert error.startswith("error: ")
        assert "model" in error


def test_L21_a_machine_that_lacks_something_is_one_line_and_1() -> None:
    with server_process(code=WAIT_IN_LOAD.replace("interrupt()", "raise RuntimeError('no more threads')")) as server:
        assert server.wait() == 1
        assert server.lines[1:] == ["error: the models cannot be loaded (RuntimeError: no more threads)"]


def test_L21_a_port_in_use_is_one_line_and_1() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        with server_process("--port", str(port)) as server:
            assert server.wait() == 1
            assert server.lines == [f"error: cannot listen on 127.0.0.1 port {port}: Address already in use"]


@pytest.mark.parametrize(
    "arguments", [["--no-such-flag"], ["--port", "70000"], ["--host", "192.0.2.1"], ["--threads", "0"]]
)
def test_L21_wrong_usage_is_2(arguments: list[str]) -> None:
    with server_process(*arguments) as server:
        assert server.wait() == 2
        assert server.lines[-1].startswith("Error: ")


def test_L21_the_port_answers_as_soon_as_it_is_named() -> None:
    with server_process() as server:
        socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT).close()
        assert server.request("POST", CHAT, body_of(CHAT)).status in (200, 503)
        server.wait_until_ready()
        server.send(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.alone
def test_L21_small_answers_are_sent_without_delay() -> None:
    with serving() as server, closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)) as client:
        times = []
        for _ in range(20):
            began = time.monotonic()
            client.request("GET", "/livez")
            assert client.getresponse().read()
            times.append(time.monotonic() - began)
    # The system's algorithms against small packets take 40 ms each time.
    assert sorted(times)[5] < 0.03
