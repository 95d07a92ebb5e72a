"""A server as a process: it opens early, serves, and comes down clean (L21, L22)."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.lifecycle import ANSWER, LIMIT, QUESTION
from support.server import server_process

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_L22_a_signal_ends_it_with_0(number: signal.Signals) -> None:
    with server_process() as server:
        server.wait_until_ready()
        body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        assert server.request("POST", "/v1/chat/completions", body).json["choices"][0]["message"]["content"] == ANSWER
        server.send(number)
        assert server.wait() == 0


def test_L21_a_model_that_does_not_exist_is_one_line_and_1() -> None:
    with server_process("/no/such/model") as server:
        assert server.wait() == 1
        assert [line for line in server.lines if line.startswith("error:")] == server.lines[-1:]
        assert "Traceback" not in "\n".join(server.lines)


def test_L22_a_signal_is_not_lost_when_the_event_loop_is_busy() -> None:
    """The loop's own pipe is full of wake-ups by then, as it is when many streams run."""
    program = """
import asyncio, os, signal
from windlass.server.run import serve
from windlass.server.settings import ServerSettings
from support.server import DEMO

def ready():
    loop = asyncio.get_running_loop()
    for _ in range(100_000):
        loop.call_soon_threadsafe(int)
    os.kill(os.getpid(), signal.{})

raise SystemExit(serve([DEMO], ServerSettings(port=0), started=print, ready=ready))
"""
    for name in ("SIGTERM", "SIGINT"):
        done = subprocess.run(
            [sys.executable, "-c", program.format(name)], cwd=TESTS, capture_output=True, text=True, timeout=LIMIT
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_L21_a_client_may_connect_as_soon_as_the_port_is_named() -> None:
    program = """
import os, signal, socket
from windlass.server.run import serve
from windlass.server.settings import ServerSettings
from support.server import DEMO

def started(port):
    socket.create_connection(("127.0.0.1", port), 1).close()

def ready():
    os.kill(os.getpid(), signal.SIGTERM)

raise SystemExit(serve([DEMO], ServerSettings(port=0), started=started, ready=ready))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=TESTS, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (0, "")
