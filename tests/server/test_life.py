"""A server as a process: it opens early, serves, and comes down clean (L21, L22)."""

from __future__ import annotations

import signal

import pytest

from support.lifecycle import ANSWER, QUESTION
from support.server import server_process


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
