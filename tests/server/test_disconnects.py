"""Clients that leave, and the endings that those get who stay (L3, L4, L5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from support.http_streams import CHAT, ENDLESS, TEXT, Exchange, body_of, endings
from support.lifecycle import (
    LIMIT,
    LONG,
    MIDDLE,
    PROMPT,
    QUESTION,
    Gate,
    core_of,
    num_pages,
    slow_down,
    wait_for,
    write_shape,
)
from support.server import RunningServer, serving, until
from support.sockets import open_requests
from windlass import EngineConfig
from windlass.server.served import ModelSpec

SEQUENCES = 2


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A slowed server with room for two sequences."""
    config = EngineConfig(
        num_threads=2, max_num_sequence=SEQUENCES, max_waiting_requests=3, speculative_mode="disable", verbose=False
    )
    with serving(ModelSpec("windlass-demo", config), enable_debug=True) as running:
        slow_down(running.engine)
        yield running


@pytest.fixture(autouse=True)
def _nothing_left_open(server: RunningServer) -> Iterator[None]:
    yield
    assert freed(server, LIMIT), "a call is open, or pages are held, that nobody reads"


def freed(server: RunningServer, limit: float = PROMPT) -> bool:
    """Whether within ``limit`` seconds no call is open and no page is held."""
    core, pages = core_of(server.engine), num_pages(server.engine)
    return wait_for(lambda: core.num_open == 0, limit) and wait_for(lambda: core.num_free_pages() == pages, limit)


def open_exchange(server: RunningServer, path: str, *, stream: bool, count: int, **fields: Any) -> Exchange:
    """Send a request, and wait until the engine has ``count`` calls and this one has begun, or waits."""
    exchange = Exchange(server.port, body_of(path, stream=stream, **{**ENDLESS, **fields}), path)
    until(lambda: core_of(server.engine).num_open == count)
    return exchange


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_L5_a_client_that_leaves_while_decoding_frees_its_request(
    server: RunningServer, path: str, stream: bool
) -> None:
    exchange = open_exchange(server, path, stream=stream, count=1)
    if stream:
        exchange.next_event()
    else:
        until(lambda: server_tokens(server) > 0)
    exchange.leave()
    assert freed(server)


@pytest.mark.parametrize("stream", [True, False])
def test_L5_a_client_that_leaves_while_it_waits_frees_its_request(server: RunningServer, stream: bool) -> None:
    core = core_of(server.engine)
    with ExitStack() as stack:
        for count in range(1, SEQUENCES + 1):
            running = stack.enter_context(closing(open_exchange(server, CHAT, stream=True, count=count)))
            running.next_event()
        waiting = open_exchange(server, CHAT, stream=stream, count=SEQUENCES + 1)
        assert len(core._accounts._waiting) == 1
        waiting.leave()
        assert wait_for(lambda: core.num_open == SEQUENCES, PROMPT)


@pytest.mark.parametrize("stream", [True, False])
def test_L5_a_client_that_leaves_during_prefill_frees_its_request(tmp_path: Path, stream: bool) -> None:
    config = EngineConfig(
        model=write_shape(tmp_path, **MIDDLE),
        load_format="dummy",
        prefill_chunk_size=2048,
        max_single_sequence_length=2304,
        verbose=False,
    )
    with serving(ModelSpec("middle", config)) as server:
        executor = core_of(server.engine)._runtime.executor  # type: ignore[union-attr]
        for number in range(4):  # often enough for a step that may be cut short only so many times
            body = {"prompt": [number, *range(100, 2099)], "max_tokens": 1, "stream": stream}
            before = executor.progress
            exchange = Exchange(server.port, body, TEXT)
            until(lambda before=before: executor.progress > before)  # type: ignore[misc]
            assert core_of(server.engine).num_open == 1
            exchange.leave()
            assert freed(server), number


def test_L5_the_tokens_of_others_are_unchanged(server: RunningServer) -> None:
    alone = server.chat(LONG, temperature=0.0, max_tokens=80, seed=1).json["choices"][0]["message"]["content"]
    with closing(Exchange(server.port, body_of(CHAT, stream=True, temperature=0.0, max_tokens=80, seed=1))) as kept:
        pieces = [kept.next_event()]
        for _ in range(4):
            other = Exchange(server.port, body_of(CHAT, stream=True, text=QUESTION, **ENDLESS))
            other.next_event()
            other.leave()
        pieces += kept.rest()
    assert endings(pieces) == ["done"]
    assert "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces[:-1]) == alone


def test_L5_a_storm_of_clients_that_leave(server: RunningServer) -> None:
    for _ in range(10):
        exchanges = [Exchange(server.port, body_of(CHAT, stream=n % 2 == 0, **ENDLESS)) for n in range(5)]
        for exchange in exchanges:
            exchange.leave()
    # The last of them may still be on their way in.
    until(lambda: server.chat(QUESTION, max_tokens=1).status == 200)
    assert freed(server, LIMIT)
    assert not core_of(server.engine)._accounts._waiting


def test_L4_beyond_the_queue_429_before_anything_is_sent(server: RunningServer) -> None:
    gate = Gate(server.engine)
    gate.shut()
    try:
        with ExitStack() as stack:
            accepted = [
                stack.enter_context(
                    closing(Exchange(server.port, body_of(CHAT, stream=number % 2 == 0, max_tokens=3, temperature=0.0)))
                )
                for number in range(12)
            ]
            answered = [exchange for exchange in accepted if refused_at_once(exchange)]
            # One step may have begun before the gate was shut; what runs does not wait.
            assert 12 - 3 - SEQUENCES <= len(answered) <= 12 - 3
            for exchange in answered:
                assert exchange.response.headers["retry-after"]
                assert exchange.json()["error"]["code"] == "overloaded"
            gate.open.set()
            for exchange in accepted:
                if exchange in answered:
                    continue
                if exchange.response.headers["content-type"].startswith("text/event-stream"):
                    assert endings(exchange.rest()) == ["done"]
                else:
                    assert exchange.json()["choices"][0]["finish_reason"]
    finally:
        gate.open.set()
    slow_down(server.engine)


def refused_at_once(exchange: Exchange) -> bool:
    """Whether 429 comes within a moment; a request that waits says nothing, and a stream that does says 200."""
    exchange.socket.settimeout(0.3)
    try:
        return exchange.response.status == 429
    except TimeoutError:
        return False
    finally:
        exchange.socket.settimeout(LIMIT)


def server_tokens(server: RunningServer) -> float:
    """Tokens that the running requests have come to."""
    return sum(request.num_generated for requests in core_of(server.engine)._accounts.all() for request in requests)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_tokens": 300}, "stop"),
        ({"max_tokens": 300, "stop": ["e"]}, "stop"),
        ({**ENDLESS, "max_tokens": 3}, "length"),
    ],
)
def test_L3_a_request_that_finishes_ends_once(
    server: RunningServer, path: str, fields: dict[str, Any], reason: str
) -> None:
    whole = server.request("POST", path, body_of(path, text=QUESTION, **{"temperature": 0.0, **fields}))
    assert whole.status == 200
    assert whole.json["choices"][0]["finish_reason"] == reason
    with closing(
        Exchange(server.port, body_of(path, text=QUESTION, stream=True, **{"temperature": 0.0, **fields}), path)
    ) as exchange:
        events = exchange.rest()
    assert endings(events) == ["done"]
    assert events[-1] == "[DONE]"
    reasons = [event["choices"][0]["finish_reason"] for event in events[:-1]]
    assert [one for one in reasons if one] == [reason]
    assert reasons[-1] == reason


def on_engine(server: RunningServer, name: str, *arguments: Any) -> None:
    """Call a coroutine method of the engine on the server's loop."""
    server.run(getattr(server.engine, name)(*arguments))


def reset(server: RunningServer) -> None:
    on_engine(server, "reset")


def unload_and_reload(server: RunningServer) -> None:
    on_engine(server, "unload")
    refused = server.chat(QUESTION)
    assert (refused.status, refused.json["error"]["code"]) == (503, "model_not_ready")
    assert server.request("GET", "/readyz").status == 503
    on_engine(server, "reload")
    assert server.request("GET", "/readyz").status == 200
    slow_down(server.engine)


def nothing(server: RunningServer) -> None:
    """The request runs out of time by itself."""


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("cut", "fields", "code", "status"),
    [
        (reset, {}, "request_cancelled", 503),
        (unload_and_reload, {}, "request_cancelled", 503),
        (nothing, {"timeout": 0.1}, "timeout", 504),
    ],
)
def test_L3_a_request_that_is_cut_ends_once_with_an_error(
    server: RunningServer,
    path: str,
    cut: Callable[[RunningServer], None],
    fields: dict[str, Any],
    code: str,
    status: int,
) -> None:
    with (
        closing(Exchange(server.port, body_of(path, stream=True, **ENDLESS, **fields), path)) as stream,
        closing(Exchange(server.port, body_of(path, **ENDLESS, **fields), path)) as whole,
    ):
        first = stream.next_event()
        until(lambda: core_of(server.engine).num_open == 2 or "timeout" in fields)
        cut(server)
        events = [first, *stream.rest()]
        assert endings(events) == [code]
        assert not any(event["choices"][0]["finish_reason"] for event in events[:-1])
        assert whole.response.status == status
        assert whole.json()["error"]["code"] == code


def test_L5_disconnects_are_told_to_nobody(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    for stream in (True, False):
        exchange = open_exchange(server, CHAT, stream=stream, count=1)
        exchange.leave()
        assert freed(server)
    until(lambda: open_requests(server) == 0)
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
