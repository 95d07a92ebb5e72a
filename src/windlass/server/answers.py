"""Answers to clients that may leave, or stop reading, at any time."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from windlass.server.api_errors import ApiError, ClientGone, api_error_of
from windlass.server.connections import ABORT
from windlass.server.tasks import cancelled

Result = TypeVar("Result")
log = logging.getLogger("windlass.server")

DONE = b"data: [DONE]\n\n"


def data_event(value: str | bytes) -> bytes:
    """One server-sent event with ``value``, JSON on one line, as its data."""
    return b"data: " + (value.encode() if isinstance(value, str) else value) + b"\n\n"


def named_event(name: str, value: Any) -> bytes:
    """One server-sent event with a name, and ``value`` as JSON."""
    return f"event: {name}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def error_event(error: ApiError) -> Iterable[bytes]:
    """How OpenAI's streams end badly."""
    yield data_event(error.body_bytes())


async def answer(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what ``work`` returns. When the client leaves first, cancel it, which aborts its request.

    The body must have been read.

    Raises:
        ClientGone: the client left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await cancelled(task, gone)


class EventStream(Response):
    """A response of server-sent events with exactly one ending: that of ``events``, or what ``fail`` makes of an error.

    When the client leaves, or reads nothing for ``send_timeout`` seconds, ``events`` is closed, which must abort the
    request behind it, and the connection ends in the middle of the response.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        send_timeout: float,
        fail: Callable[[ApiError], Iterable[bytes]] = error_event,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._fail = fail
        self._send_timeout = send_timeout
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events while the client is there."""
        pump = asyncio.ensure_future(self._pump(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        stalled = asyncio.ensure_future(self._stalled())
        try:
            await asyncio.wait((pump, gone, stalled), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
            elif not gone.done():
                log.warning("cut off a client that read nothing for %g s", self._send_timeout)
                abort = scope.get("extensions", {}).get(ABORT)
                if abort is not None:
                    abort()
        finally:
            await cancelled(pump, gone, stalled)
            await self._events.aclose()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._told()) as events:
            async for event in events:
                await self._send(send, event, more=True)
                # Where events are ready and the client takes them, nothing in here waits; and that the client has left
                # is noticed between two turns of the event loop only.
                await asyncio.sleep(0)
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, data: bytes, *, more: bool) -> None:
        self._sending_since = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": data, "more_body": more})
        self._sending_since = None

    async def _told(self) -> AsyncGenerator[bytes, None]:
        """The events; an error among them becomes events of its own."""
        try:
            async for event in self._events:
                yield event
        except Exception as error:
            told = api_error_of(error)
            if told.status == 500:
                log.exception("an answer broke off")
            for event in self._fail(told):
                yield event

    async def _stalled(self) -> None:
        """Return once one event has been on its way for too long."""
        clock = asyncio.get_running_loop().time
        left = self._send_timeout
        while left > 0:
            await asyncio.sleep(left)
            since = self._sending_since
            left = self._send_timeout if since is None else since + self._send_timeout - clock()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
