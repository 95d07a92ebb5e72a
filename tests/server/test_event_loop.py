"""Nothing that a client sends, or asks for, keeps the event loop from the others for long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.http_streams import CHAT, ENDLESS, TEXT, body_of
from support.lifecycle import QUESTION
from support.server import RunningServer, serving
from windlass.serve import call
from windlass.server.answers import EventStream

NOISE = 1.0
"""Seconds that a machine under load may keep a thread waiting; what blocks takes longer."""

TICK = 0.005


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(enable_debug=True) as running:
        running.chat(QUESTION)
        yield running


@contextmanager
def loop_watched(server: RunningServer) -> Iterator[list[float]]:
    """Seconds by which a task that wakes all the time was late."""
    late: list[float] = []
    over = False

    async def tick() -> None:
        while not over:
            began = time.monotonic()
            await asyncio.sleep(TICK)
            late.append(time.monotonic() - began - TICK)

    ticking = asyncio.run_coroutine_threadsafe(tick(), server._loop)
    try:
        yield late
    finally:
        over = True
        ticking.result()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, body_of(CHAT, text="The quick brown fox. " * 5000)),
        (CHAT, body_of(CHAT, text="漢字 héllo " * 12000)),
        (CHAT, {"messages": [{"role": "user", "content": "Hello there."}] * 2001}),
        (TEXT, {"prompt": [5] * 100_000}),
        (TEXT, b'{"prompt": [' + b'"a",' * 1_000_000 + b'"a"]}'),
        (CHAT, b'{"messages": [' + b"{}," * 1_300_000 + b"{}]}"),
        (CHAT, b"{" + b",".join(b'"k%d":1' % number for number in range(300_000)) + b"}"),
    ],
    ids=["words", "unicode", "messages", "tokens", "strings", "objects", "keys"],
)
def test_large_requests_are_refused_aside(server: RunningServer, path: str, body: Any) -> None:
    with loop_watched(server) as late:
        assert server.request("POST", path, body).status == 400
    print(f"{max(late) * 1000:.0f} ms late at most")
    assert max(late) < NOISE


def test_a_whole_answer_of_megabytes_is_made_aside(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    response = call._Collector.response

    def watched(self: Any) -> Any:
        threads.append(threading.current_thread().name)
        return response(self)

    monkeypatch.setattr(call._Collector, "response", watched)
    fields = {**ENDLESS, "max_tokens": 100, "logprobs": True, "top_logprobs": 20}
    choice = server.request("POST", CHAT, body_of(CHAT, **fields)).json["choices"][0]
    assert len(choice["logprobs"]["content"]) == 100
    assert server.chat(QUESTION, max_tokens=5).status == 200
    assert threads == ["windlass-task", "test-server"]


def test_a_stream_with_a_backlog_lets_others_run() -> None:
    ticks = 0

    async def events() -> AsyncGenerator[bytes, None]:
        for _ in range(100):
            time.sleep(0.002)
            yield b"data: {}\n\n"

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(_message: Any) -> None:
        """The client takes everything."""

    async def main() -> None:
        ticking = asyncio.ensure_future(tick())
        await EventStream(events(), send_timeout=10)({"type": "http"}, receive, send)
        ticking.cancel()

    asyncio.run(main())
    assert ticks > 10
