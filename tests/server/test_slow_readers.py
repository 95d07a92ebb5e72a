"""Clients that stop reading are cut off, and hold nothing up (L5, L8)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

from support.http_streams import CHAT, ENDLESS, Exchange, body_of, endings
from support.lifecycle import LIMIT, QUESTION, core_of, num_descriptors, wait_for
from support.server import RunningServer, serving, until

MUCH: dict[str, Any] = {**ENDLESS, "logprobs": True, "top_logprobs": 20, "n": 4}
"""Fields of an answer of megabytes."""


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(enable_debug=True, send_timeout=0.5) as running:
        yield running


def deaf_client(server: RunningServer, **fields: Any) -> socket.socket:
    """A client that sends a request and reads nothing; the system keeps little for it."""
    client = socket.socket()
    client.settimeout(LIMIT)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    data = json.dumps(body_of(CHAT, **fields)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    client.sendall(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return client


def test_L5_a_client_that_stops_reading_is_cut_off_and_its_stream_aborted(server: RunningServer) -> None:
    core, descriptors = core_of(server.engine), num_descriptors()
    with closing(deaf_client(server, stream=True, **{**MUCH, "n": 8})) as client:
        until(lambda: core.num_open == 1)
        with closing(Exchange(server.port, body_of(CHAT, text=QUESTION, stream=True, temperature=0.0))) as other:
            assert endings(other.rest()) == ["done"]
        # The client's end and the server's: the latter is gone although the former reads nothing.
        assert wait_for(lambda: num_descriptors() == descriptors + 1)
        assert core.num_open == 0
        data = b""
        with suppress(ConnectionError):
            while more := client.recv(1 << 16):
                data += more
    assert data.startswith(b"HTTP/1.1 200 ")
    assert b"[DONE]" not in data
    assert not data.endswith(b"0\r\n\r\n")


def test_L5_a_client_that_reads_slowly_but_steadily_gets_everything(server: RunningServer) -> None:
    with closing(deaf_client(server, stream=True, **{**MUCH, "max_tokens": 100})) as client:
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += client.recv(1 << 14)
    assert data.count(b"data: [DONE]") == 1


def test_L5_a_client_that_leaves_in_the_middle_of_much_is_no_news(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        exchange = Exchange(server.port, body_of(CHAT, stream=True, **{**MUCH, "n": 16}))
        exchange.next_event()
        exchange.leave()
        until(lambda: core_of(server.engine).num_open == 0)
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
