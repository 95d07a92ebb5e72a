"""Clients that leave at every stage, send rubbish, or do nothing: afterwards the server is as it was."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.http_streams import ASK, CHAT
from support.lifecycle import ANSWER, LIMIT, idle_and_whole, num_descriptors
from support.server import RunningServer, serving, until
from support.sockets import (
    RawClient,
    aborted_requests,
    first_status,
    head,
    open_connections,
    open_requests,
    post,
    running_requests,
)
from windlass.server.connections import Connection

LONG = {**ASK, "n": 4, "debug_config": {"ignore_eos": True}}
JSON = {"Content-Type": "application/json"}
STREAM = post(CHAT, {**LONG, "stream": True})
WHOLE = post(CHAT, LONG)
BODY_AT = WHOLE.index(b"\r\n\r\n") + 4


@pytest.fixture(scope="module")
def running() -> Iterator[RunningServer]:
    with serving(enable_debug=True) as server:
        assert ask(server) == ANSWER
        yield server


def ask(server: RunningServer) -> str:
    answer = server.request("POST", CHAT, ASK)
    assert answer.status == 200
    return str(answer.json["choices"][0]["message"]["content"])


class Listener(logging.Handler):
    """Keeps what anyone warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(f"{record.name}: {record.getMessage()}")


@contextlib.contextmanager
def unchanged(server: RunningServer) -> Iterator[None]:
    """Whatever happens in the block, the server must be as it was after it, and must not have had anything to say."""
    until(lambda: open_connections(server) == 0)
    before = num_descriptors()
    listener = Listener()
    logging.getLogger().addHandler(listener)
    try:
        yield
        until(lambda: open_requests(server) == 0)
        until(lambda: open_connections(server) == 0)
    finally:
        logging.getLogger().removeHandler(listener)
    until(lambda: num_descriptors() <= before)
    assert idle_and_whole(server.engine)
    assert server.request("GET", "/readyz").status == 200
    assert ask(server) == ANSWER
    assert listener.heard == []


@pytest.fixture
def server(running: RunningServer) -> Iterator[RunningServer]:
    """A server that must be unchanged after the test."""
    with unchanged(running):
        yield running


# Leaving


def _close(client: RawClient) -> None:
    client.__exit__()


def _half_close(client: RawClient) -> None:
    client.socket.shutdown(socket.SHUT_WR)
    client.rest()
    client.__exit__()


LEAVING: dict[str, Callable[[RawClient], None]] = {
    "close": _close,
    "reset": RawClient.reset,
    "half-close": _half_close,
}
STAGES = {
    "connected": b"",
    "within the method": b"PO",
    "within the head": WHOLE[:40],
    "before the body": WHOLE[:BODY_AT],
    "within the body": WHOLE[: BODY_AT + 10],
    "one byte short": WHOLE[:-1],
    "after a large part": head("POST", CHAT, {**JSON, "Content-Length": "3000000"}) + b" " * 2_000_000,
    "within a chunk": head("POST", CHAT, {"Transfer-Encoding": "chunked", "Content-Type": "application/json"})
    + b"5\r\n{",
    "asked": WHOLE,
    "asked for a stream": STREAM,
    "asked twice": WHOLE * 2,
    "asked, then rubbish": STREAM + b"\x00\xff" * 100,
    "refused": post("/nowhere", b"x" * 100),
}


@pytest.mark.parametrize("how", LEAVING)
@pytest.mark.parametrize("stage", STAGES)
def test_leaving_at_once(server: RunningServer, stage: str, how: str) -> None:
    for _ in range(3):
        client = RawClient(server.port)
        with contextlib.suppress(ConnectionError):
            client.send(STAGES[stage])
        LEAVING[how](client)


@pytest.mark.parametrize("how", LEAVING)
@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
def test_leaving_while_the_answer_is_made(server: RunningServer, request_: bytes, how: str) -> None:
    before = aborted_requests(server)
    client = RawClient(server.port)
    client.send(request_)
    until(lambda: running_requests(server) > 0)
    LEAVING[how](client)
    until(lambda: aborted_requests(server) > before)


@pytest.mark.parametrize("how", LEAVING)
def test_leaving_in_the_middle_of_a_stream(server: RunningServer, how: str) -> None:
    before = aborted_requests(server)
    for _ in range(5):
        client = RawClient(server.port)
        client.send(STREAM)
        got = b""
        while got.count(b"data: ") < 3:
            got += client.socket.recv(500)
        LEAVING[how](client)
    until(lambda: aborted_requests(server) >= before + 5)


def test_what_is_written_to_a_lost_connection_is_not_news(server: RunningServer) -> None:
    """asyncio warns of the fifth write after a connection was lost, before the protocol is told that it was."""
    protocols: list[Connection] = []
    original = Connection.connection_made

    def note(self: Connection, transport: asyncio.Transport) -> None:
        protocols.append(self)
        original(self, transport)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "connection_made", note)
        with RawClient(server.port) as client:
            client.send(STREAM)
            until(lambda: running_requests(server) > 0)

            def lose() -> None:
                protocols[0].transport.abort()
                for _ in range(10):
                    protocols[0].transport.write(b"x")

            server._loop.call_soon_threadsafe(lose)
            client.rest()


def test_leaving_between_requests(server: RunningServer) -> None:
    for leave in LEAVING.values():
        client = RawClient(server.port)
        client.send(post(CHAT, {**ASK, "max_tokens": 1}))
        assert client.answer().status == 200
        leave(client)


# Slow and small


def test_one_byte_at_a_time(server: RunningServer) -> None:
    request = post(CHAT, {**ASK, "stream": True})
    with RawClient(server.port) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            client.send(bytes((byte,)))
        got = b""
        while not got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            part = client.socket.recv(1)
            assert part
            got += part
        assert first_status(got) == 200


def test_chunks_of_one_byte(server: RunningServer) -> None:
    body = post(CHAT, ASK).partition(b"\r\n\r\n")[2]
    request = head("POST", CHAT, {"Transfer-Encoding": "chunked", "Content-Type": "application/json"})
    with RawClient(server.port) as client:
        client.send(request + b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in body) + b"0\r\nTrailer: x\r\n\r\n")
        assert client.answer().json["choices"][0]["message"]["content"] == ANSWER


def test_300_idle_connections(server: RunningServer) -> None:
    clients = [RawClient(server.port) for _ in range(300)]
    try:
        for client in clients[::2]:
            client.send(b"GET /livez HTTP/1.1\r\nHost: ")
        until(lambda: open_connections(server) == 300)
        began = time.monotonic()
        assert ask(server) == ANSWER
        assert time.monotonic() - began < LIMIT / 2
        for client in clients[::2]:
            client.send(b"localhost\r\n\r\n")
        assert {client.answer("GET").status for client in clients[::2]} == {200}
    finally:
        for client in clients:
            client.__exit__()


def test_many_streams_that_leave_together(server: RunningServer) -> None:
    clients = [RawClient(server.port) for _ in range(50)]
    for client in clients:
        client.send(STREAM)
    until(lambda: open_requests(server) == 50)
    for number, client in enumerate(clients):
        list(LEAVING.values())[number % 2](client)


# Rubbish


def test_a_head_without_end(server: RunningServer) -> None:
    with RawClient(server.port) as client:
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 10_000_000:
                client.send(b"x" * 10_000)
                sent += 10_000
        assert first_status(client.rest() or b"HTTP/1.1 400 ") in (400, 431)
    with RawClient(server.port) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < LIMIT:
                client.send(b"X: y\r\n" * 1000)


def test_a_thousand_malformed_requests_leave_no_trace(server: RunningServer) -> None:
    """The fixture sees what is logged."""
    for number in range(1000):
        with RawClient(server.port) as client:
            client.send(b"\x16\x03\x01 rubbish %d\r\n\r\n" % number)
            assert first_status(client.rest()) == 400


SMALL = post(CHAT, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1})
DECLARED = {200, 400, 403, 404, 405, 408, 413, 415, 431, 501}


@pytest.mark.parametrize("part", ["head", "body"])
def test_random_bytes_in_a_request(part: str) -> None:
    end = SMALL.index(b"\r\n\r\n") + 4
    span = (0, end - 1) if part == "head" else (end, len(SMALL) - 1)
    brief = dict.fromkeys(("header_timeout", "body_timeout", "keep_alive_timeout"), 0.05)

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(data=st.data())
    def change(data: st.DataObject) -> None:
        request = bytearray(SMALL)
        for _ in range(data.draw(st.integers(1, 4))):
            _change(request, data, span)
        with RawClient(server.port) as client, contextlib.suppress(ConnectionError):
            client.send(bytes(request))
            answered = client.rest()
            assert not answered or first_status(answered) in DECLARED

    with serving(**brief) as server, unchanged(server):
        change()


def _change(request: bytearray, data: st.DataObject, span: tuple[int, int]) -> None:
    at = data.draw(st.integers(*span))
    kind = data.draw(st.sampled_from(("set", "insert", "delete", "repeat", "cut")))
    if kind == "set":
        request[at : at + 1] = bytes((data.draw(st.integers(0, 255)),))
    elif kind == "insert":
        request[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    elif kind == "delete":
        del request[at : at + data.draw(st.integers(1, 20))]
    elif kind == "repeat":
        request[at:at] = request[at : at + data.draw(st.integers(1, 200))]
    else:
        del request[at + 1 :]
