"""Connections: each has limits of time, number and size, and each kind of request has an answer."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from support.http_streams import ASK, CHAT
from support.lifecycle import slow_down
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

LONG = {**ASK, "n": 16, "debug_config": {"ignore_eos": True}}
BRIEF = 0.3


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(enable_debug=True) as running:
        yield running


@pytest.fixture(scope="module")
def hasty() -> Iterator[RunningServer]:
    """A server that waits for nobody."""
    limits = {"header_timeout": BRIEF, "body_timeout": BRIEF, "upload_timeout": 3 * BRIEF, "keep_alive_timeout": BRIEF}
    with serving(enable_debug=True, **limits) as running:
        yield running


def test_one_that_says_nothing_is_closed(hasty: RunningServer) -> None:
    with RawClient(hasty.port) as client:
        assert client.is_closed()


@pytest.mark.parametrize("begin", [b"G", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"])
def test_slow_heads_are_408(hasty: RunningServer, begin: bytes) -> None:
    with RawClient(hasty.port) as client:
        began = time.monotonic()
        client.send(begin)
        answer = client.answer()
        assert answer.status == 408
        assert answer.json["error"]["code"] == "request_timeout"
        assert time.monotonic() - began > BRIEF * 0.9
        assert client.is_closed()


def test_a_head_byte_by_byte_gains_no_time(hasty: RunningServer) -> None:
    with RawClient(hasty.port) as client:
        began = time.monotonic()
        client.socket.settimeout(0.05)
        data = b""
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        while not data:
            client.send(b"x")
            try:
                data = client.socket.recv(65536)
            except TimeoutError:
                assert time.monotonic() - began < 10
        assert first_status(data) == 408


def test_a_silent_body_is_408(hasty: RunningServer) -> None:
    with RawClient(hasty.port) as client:
        client.send(head("POST", CHAT, {"Content-Type": "application/json", "Content-Length": "10"}) + b"{")
        assert client.answer().json["error"]["code"] == "request_timeout"
        assert client.is_closed()
    until(lambda: not open_requests(hasty))


def test_a_body_byte_by_byte_has_a_limit_too(hasty: RunningServer) -> None:
    with RawClient(hasty.port) as client:
        began = time.monotonic()
        client.socket.settimeout(0.05)
        client.send(head("POST", CHAT, {"Content-Type": "application/json", "Content-Length": "10000"}))
        data = b""
        while not data:
            client.send(b" ")
            try:
                data = client.socket.recv(65536)
            except TimeoutError:
                assert time.monotonic() - began < 10
        assert first_status(data) == 408
        assert time.monotonic() - began > 2 * BRIEF


def test_a_body_may_take_long_while_it_comes(hasty: RunningServer) -> None:
    request = post(CHAT, {**ASK, "max_tokens": 1})
    with RawClient(hasty.port) as client:
        for start in range(0, len(request), len(request) // 5 + 1):
            client.send(request[start : start + len(request) // 5 + 1])
            time.sleep(BRIEF / 3)
        assert client.answer().status == 200


def test_a_body_that_nobody_waits_for_has_a_limit_too(hasty: RunningServer) -> None:
    with RawClient(hasty.port) as client:
        client.send(head("POST", "/nowhere", {"Content-Length": "10"}))
        assert client.answer().status == 404
        assert client.is_closed()


def test_idle_connections_are_closed(hasty: RunningServer) -> None:
    with RawClient(hasty.port) as client:
        client.send(head("GET", "/livez"))
        assert client.answer().status == 200
        client.send(head("GET", "/livez"))
        assert client.answer().status == 200
        assert client.is_closed()


def test_a_new_head_has_its_own_time(hasty: RunningServer) -> None:
    with RawClient(hasty.port) as client:
        for _ in range(3):
            client.send(head("GET", "/livez")[:-2])
            time.sleep(BRIEF / 2)
            client.send(b"\r\n")
            assert client.answer().status == 200


def test_bodies_that_are_longer_or_shorter_than_they_say(hasty: RunningServer) -> None:
    whole, fields = post(CHAT, {**ASK, "max_tokens": 1}), {"Content-Type": "application/json"}
    body = whole.partition(b"\r\n\r\n")[2]
    with RawClient(hasty.port) as client:
        client.send(head("POST", CHAT, {**fields, "Content-Length": str(len(body) - 1)}) + body)
        assert client.answer().json["error"]["code"] == "invalid_json"  # without its last byte
        assert client.answer().status == 408  # that byte begins a request
        assert client.is_closed()
    with RawClient(hasty.port) as client:
        client.send(head("POST", CHAT, {**fields, "Content-Length": str(len(body) + 1)}) + body)
        assert client.answer().status == 408
        assert client.is_closed()


def test_a_request_that_takes_long_is_not_slow(hasty: RunningServer) -> None:
    slow_down(hasty.engine, 0.02)
    with RawClient(hasty.port) as client:
        began = time.monotonic()
        client.send(post(CHAT, {**LONG, "n": 1, "max_tokens": 40}))
        assert client.answer().status == 200
        assert time.monotonic() - began > BRIEF


def test_the_system_drops_a_client_whose_machine_is_gone(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[tuple[int, ...]] = []
    original = Connection.connection_made

    def note(self: Connection, transport: asyncio.Transport) -> None:
        original(self, transport)
        names = ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        options.append(tuple(transport.get_extra_info("socket").getsockopt(*name) for name in names))

    monkeypatch.setattr(Connection, "connection_made", note)
    assert server.request("GET", "/livez").status == 200
    assert options == [(1, 30_000)]


def test_one_connection_too_many_is_503() -> None:
    with serving(max_connections=2) as server:
        with RawClient(server.port) as one, RawClient(server.port) as two:
            until(lambda: open_connections(server) == 2)
            with RawClient(server.port) as three:
                three.send(head("GET", "/livez"))
                refused = three.answer()
                assert refused.status == 503
                assert refused.json["error"]["code"] == "overloaded"
                assert refused.headers["retry-after"]
                assert three.is_closed()
            for client in (one, two):
                client.send(head("GET", "/livez"))
                assert client.answer().status == 200
        until(lambda: open_connections(server) == 0)
        assert server.request("GET", "/livez").status == 200


def test_a_storm_of_connections_is_turned_away_at_once() -> None:
    with serving(max_connections=2) as server:
        clients = [RawClient(server.port) for _ in range(2)]
        until(lambda: open_connections(server) == 2)
        clients += [RawClient(server.port) for _ in range(150)]
        try:
            answered = [client.rest() for client in clients[2:]]
            assert {first_status(data) for data in answered if data} == {503}
        finally:
            for client in clients:
                client.__exit__()
        until(lambda: open_connections(server) == 0)
        assert server.request("GET", "/livez").status == 200


@pytest.mark.parametrize("size", [17_000, 60_000, 250_000])
@pytest.mark.parametrize("ends", [True, False])
def test_a_head_that_is_too_long_is_431(server: RunningServer, size: int, ends: bool) -> None:
    with RawClient(server.port) as client:
        client.send(head("GET", "/livez", {"X": "x" * size})[: None if ends else -2])
        refused = client.answer()
        assert refused.status == 431
        assert refused.json["error"]["code"] == "headers_too_large"


def test_too_many_headers_are_431(server: RunningServer) -> None:
    with RawClient(server.port) as client:
        client.send(head("GET", "/livez", {f"X{number}": "x" for number in range(100)}))
        assert client.answer().status == 431


MALFORMED = {
    "garbage": b"\x00\xff\x13\x37 garbage\r\n\r\n",
    "TLS ClientHello": bytes.fromhex("16030100c8010000c40303") + bytes(100) + b"\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "HTTP/3.0": b"GET /livez HTTP/3.0\r\nHost: localhost\r\n\r\n",
    "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    "space before the colon": b"GET /livez HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "non-ASCII path": "GET /livéz HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
    "NUL in a header": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    "CR in a header": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
    "two lengths": head("POST", CHAT, {"Content-Length": "2"})[:-2] + b"Content-Length: 3\r\n\r\n{}",
    "negative length": head("POST", CHAT, {"Content-Length": "-1"}),
    "signed length": head("POST", CHAT, {"Content-Length": "+2"}) + b"{}",
    "length in hex": head("POST", CHAT, {"Content-Length": "0x2"}) + b"{}",
    "length with underscore": head("POST", CHAT, {"Content-Length": "1_0"}) + b"{}",
    "list of lengths": head("POST", CHAT, {"Content-Length": "2, 3"}) + b"{}",
    "length and chunks": head("POST", CHAT, {"Content-Length": "2", "Transfer-Encoding": "chunked"}) + b"0\r\n\r\n",
    "chunks in HTTP/1.0": head("POST", CHAT, {"Transfer-Encoding": "chunked"}, "1.0") + b"0\r\n\r\n",
    "bad chunk size": head("POST", CHAT, {"Transfer-Encoding": "chunked"}) + b"zz\r\n{}\r\n0\r\n\r\n",
    "negative chunk": head("POST", CHAT, {"Transfer-Encoding": "chunked"}) + b"-1\r\n{}\r\n0\r\n\r\n",
    "huge chunk": head("POST", CHAT, {"Transfer-Encoding": "chunked"}) + b"f" * 40 + b"\r\n{}\r\n",
    "chunk without end": head("POST", CHAT, {"Transfer-Encoding": "chunked"}) + b"2\r\n{}XX0\r\n\r\n",
    "absolute target": b"GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
SMUGGLED = head("GET", "/version")


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_proper_request_is_400_and_the_last(server: RunningServer, name: str) -> None:
    with RawClient(server.port) as client:
        client.send(MALFORMED[name] + SMUGGLED)
        refused = client.answer()
        assert refused.status == 400
        assert refused.headers["content-type"] == "application/json"
        assert refused.headers["connection"] == "close"
        assert refused.json["error"]["code"] == "malformed_request"
        assert client.is_closed()


@pytest.mark.parametrize("coding", ["gzip", "gzip, chunked", "identity"])
def test_other_transfer_codings_are_501(server: RunningServer, coding: str) -> None:
    with RawClient(server.port) as client:
        client.send(head("POST", CHAT, {"Transfer-Encoding": coding}) + b"{}" + SMUGGLED)
        assert client.answer().status == 501
        assert client.is_closed()


def test_chunks_after_an_answer_need_not_be_right(server: RunningServer) -> None:
    """uvicorn's own answer to a malformed body came after the route's, and left a traceback."""
    with RawClient(server.port) as client:
        client.send(head("POST", "/nowhere", {"Transfer-Encoding": "chunked"}))
        assert client.answer().status == 404
        client.send(b"zz\r\n")
        assert client.is_closed()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "//livez", 404),
        ("GET", "/livez/", 404),
        ("GET", "/livez/../v1/models", 404),
        ("GET", "/livez%00", 404),
        ("GET", "/%ff%fe", 404),
        ("GET", "/%C3%A9", 404),
        ("GET", "/v1/models/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/%6civez", 200),
        ("GET", "/livez?x=%00&y[]=1", 200),
        ("OPTIONS", "/livez", 405),
        ("OPTIONS", CHAT, 405),
        ("TRACE", "/livez", 405),
        ("PUT", CHAT, 405),
        ("BREW", "/livez", 405),
        ("GET", CHAT, 405),
        ("POST", "/livez", 405),
    ],
)
def test_odd_paths_and_methods_have_an_answer(server: RunningServer, method: str, path: str, status: int) -> None:
    with RawClient(server.port) as client:
        client.send(head(method, path, {"Content-Length": "0"}))
        answer = client.answer(method)
        assert answer.status == status
        assert status == 200 or answer.json["error"]["code"] in ("not_found", "model_not_found", "method_not_allowed")
        assert (status == 405) == ("allow" in answer.headers)


@pytest.mark.parametrize("path", ["/livez", "/version", "/v1/models", "/v1/models/windlass-demo", "/openapi.json", "/"])
def test_HEAD_is_GET_without_a_body(server: RunningServer, path: str) -> None:
    whole = server.request("GET", path)
    with RawClient(server.port) as client:
        for _ in range(2):
            client.send(head("HEAD", path))
            answer = client.answer("HEAD")
            assert (answer.status, answer.body) == (200, b"")
            assert answer.headers["content-length"] == str(len(whole.body))


def test_HTTP_1_0_is_answered_and_closed(server: RunningServer) -> None:
    with RawClient(server.port) as client:
        client.send(b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert first_status(client.rest()) == 200
    with RawClient(server.port) as client:
        data = post(CHAT, {**ASK, "stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0")
        client.send(data)
        streamed = client.rest()
        assert b"transfer-encoding" not in streamed.lower()
        assert streamed.endswith(b"data: [DONE]\n\n")


def test_an_upgrade_is_not_taken(server: RunningServer) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    with RawClient(server.port) as client:
        client.send(head("GET", "/livez", headers))
        assert client.answer().status == 200
        client.send(head("GET", "/nowhere", headers))
        assert client.answer().status == 404


def test_expect_100_continue(server: RunningServer) -> None:
    request = post(CHAT, {**ASK, "max_tokens": 1}, {"Expect": "100-continue"})
    end = request.index(b"\r\n\r\n") + 4
    with RawClient(server.port) as client:
        client.send(request[:end])
        assert client.socket.recv(65536).startswith(b"HTTP/1.1 100 ")
        client.send(request[end:])
        assert client.answer().status == 200


def test_expect_100_continue_is_not_granted_to_a_body_that_is_too_large(server: RunningServer) -> None:
    headers = {"Content-Length": str(10**9), "Content-Type": "application/json", "Expect": "100-continue"}
    with RawClient(server.port) as client:
        client.send(head("POST", CHAT, headers))
        assert client.answer().status == 413


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    with RawClient(server.port) as client:
        client.send(head("GET", "/livez") + post(CHAT, {**ASK, "max_tokens": 1}) + head("GET", "/nowhere"))
        assert [client.answer().status for _ in range(3)] == [200, 200, 404]


def test_a_client_that_sent_ahead_is_heard_when_it_leaves(server: RunningServer) -> None:
    before = aborted_requests(server)
    with RawClient(server.port) as client:
        client.send(post(CHAT, LONG))
        client.send(b"\r\n" + head("GET", "/livez"))
        until(lambda: running_requests(server) > 0)
    until(lambda: not open_requests(server))
    until(lambda: aborted_requests(server) > before)


def test_what_is_sent_ahead_has_a_limit(server: RunningServer) -> None:
    with RawClient(server.port) as client:
        client.send(post(CHAT, {**LONG, "stream": True}))
        assert client.socket.recv(1)
        with pytest.raises(ConnectionError):
            while True:
                client.send(head("GET", "/livez") * 1000)
    until(lambda: not open_requests(server))


def test_a_client_that_half_closes_has_left(server: RunningServer) -> None:
    before = aborted_requests(server)
    with RawClient(server.port) as client:
        client.send(post(CHAT, LONG))
        until(lambda: running_requests(server) > 0)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.is_closed()
    until(lambda: not open_requests(server))
    until(lambda: aborted_requests(server) > before)


def test_a_body_too_large_is_read_away_so_that_the_client_hears_413(server: RunningServer) -> None:
    for headers in ({}, {"Connection": "close"}):
        with RawClient(server.port) as client:
            client.send(post(CHAT, b" " * (8 << 20), headers))
            assert client.answer().status == 413
    with RawClient(server.port) as client:
        client.send(head("POST", CHAT, {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}))
        for _ in range(100):
            client.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        client.send(b"0\r\n\r\n" + head("GET", "/livez"))
        assert [client.answer().status for _ in range(2)] == [413, 200]


def test_a_body_without_end_is_cut_off(server: RunningServer) -> None:
    with RawClient(server.port) as client:
        client.send(head("POST", CHAT, {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}))
        sent = 0
        with pytest.raises(ConnectionError):
            while True:
                client.send(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
                sent += 1
        assert 60 < sent < 100
