"""Connections that no client can hold for ever: uvicorn's, with limits of time, number and size.

What is wrong with a request before there is one is answered here, in the same words as everywhere: too slow is 408, too
long a head 431, not HTTP 400, one connection too many 503. Whatever a client does is no news: it is not logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import socket
import sys
from typing import Any, ClassVar, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from windlass.server.api_errors import ApiError, unavailable
from windlass.server.settings import ServerSettings

ABORT = "windlass.abort"
"""Among the extensions of a scope: a function that ends the connection now, without what is still unsent."""

LINGER_SECONDS = 2.0
"""How long a client that is refused while it sends may go on to do so, unheard, before the connection is cut."""

MAX_BEHIND = 1 << 16
"""Bytes that a client may send ahead, behind a request that is not answered yet."""

DROPPED_BODIES = 16
# A client that is cut off while it sends does not read why; so this many times the longest body is read and dropped.

_MAX_TURNED_AWAY = 64
_SPARE_DESCRIPTORS = 128
_HEAD, _BODY = "head", "body"

log = logging.getLogger("windlass.server.connections")
log.setLevel(logging.ERROR)  # uvicorn warns of each malformed request

_TOO_MANY = unavailable("the server has too many connections", "overloaded")
_TOO_SLOW = ApiError(408, "the request did not come in time", code="request_timeout")
_MALFORMED = {
    400: ApiError(400, "this is not a valid HTTP request", code="malformed_request"),
    431: ApiError(431, "the head of the request is too long", code="headers_too_large"),
    501: ApiError(501, "the only transfer coding is chunked", code="malformed_request"),
}


class _Lingering:
    """A connection's transport, closed in the connection's way, and silent once it is closed or lost."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more is to be written."""
        return self._connection.is_leaving or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send, unless there is nobody any more, which asyncio would have to say about."""
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Let the client have what was written, then close."""
        self._connection.leave()


class Connection(H11Protocol):
    """One client's connection. Belongs to the event loop.

    A client has ``header_timeout`` seconds for the head of a request, from the moment it connects or from the first
    byte after an earlier answer. Until the body is there it may not be silent for ``body_timeout`` seconds, nor take
    ``upload_timeout`` in all. It is heard all the time: one that leaves while it waits for its answer is noticed also
    when it has sent more than it was asked for. One that half-closes its connection counts as having left.
    """

    settings: ClassVar[ServerSettings]
    limit: ClassVar[int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = log
        self.conn = h11.Connection(h11.SERVER, self.settings.max_header_bytes)
        self.timeout_keep_alive = cast(int, self.settings.keep_alive_timeout)
        self.is_leaving = False
        self._wire: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._expected: str | None = None
        self._body_began = self._heard = 0.0
        self._unwanted = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, unless there are too many connections."""
        self._wire = transport
        super().connection_made(cast(asyncio.Transport, _Lingering(transport, self)))
        _watch_peer(transport, self.settings.send_timeout)
        excess = len(self.connections) - self.limit
        if excess > _MAX_TURNED_AWAY:
            transport.abort()
        elif excess > 0:
            self._refuse(_TOO_MANY)
        else:
            self._expect(_HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request in progress."""
        self._expect(None)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what the client sends, unless it counts no more."""
        state = self.conn.their_state
        if self.is_leaving or state is h11.MUST_CLOSE:  # that was its last request
            return
        self._heard = self.loop.time()
        ahead = state not in (h11.IDLE, h11.SEND_BODY)
        if ahead or (state is h11.SEND_BODY and self.conn.our_state is h11.DONE):
            self._unwanted += len(data)
            if self._unwanted > (MAX_BEHIND if ahead else DROPPED_BODIES * self.settings.max_body_bytes):
                self._abandon()
                return
        else:
            self._unwanted = 0
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self.flow.resume_reading()  # paused, it would not hear the client leave
        self._expect_next(_HEAD)

    def handle_events(self) -> None:
        """Begin a request when its head is there."""
        super().handle_events()
        if self.scope is not None and self._wire is not None:
            scope = cast(dict[str, Any], self.scope)
            scope.setdefault("extensions", {})[ABORT] = self._wire.abort

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of a body that was answered early."""
        super().on_response_complete()
        has_begun = bool(self.conn.trailing_data[0])
        if has_begun:
            self._unset_keepalive_if_required()
        self._expect_next(_HEAD if has_begun else None)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  (uvicorn's words)
        """Refuse what is not HTTP. Called while h11's error is being handled."""
        hint = getattr(sys.exc_info()[1], "error_status_hint", 400)
        self._refuse(_MALFORMED.get(hint, _MALFORMED[400]))

    def leave(self, *, lingering: bool = False) -> None:
        """Close once the client has what was written.

        Closed with unread bytes, a connection is reset, which may overtake the answer. So a client that still sends is
        heard for a moment longer.
        """
        wire = self._wire
        if wire is None or self.is_leaving or wire.is_closing():
            return
        self.is_leaving = True
        self._expect(None)
        if lingering or self.conn.their_state is h11.SEND_BODY:
            with contextlib.suppress(OSError):  # it is gone
                wire.write_eof()
            self.flow.resume_reading()
            self._timer = self.loop.call_later(LINGER_SECONDS, wire.abort)
        else:
            wire.close()
            self._timer = self.loop.call_later(self.settings.send_timeout, wire.abort)

    def _refuse(self, error: ApiError) -> None:
        """Answer instead of any route, unless an answer has begun, and leave."""
        if self._wire is not None and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._wire.write(_raw(error))
        self._forsake()
        self.leave(lingering=True)

    def _abandon(self) -> None:
        self._forsake()
        if self._wire is not None:
            self._wire.abort()

    def _forsake(self) -> None:
        """Tell the request in progress, if any, that its client has left."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()

    def _expect_next(self, before_a_request: str | None) -> None:
        """Set the timer for what the client has to send now."""
        state = self.conn.their_state
        if not self.is_leaving:
            self._expect(_BODY if state is h11.SEND_BODY else before_a_request if state is h11.IDLE else None)

    def _expect(self, part: str | None) -> None:
        if part == self._expected and part is not None:
            return
        self._expected = part
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if part is _HEAD:
            self._timer = self.loop.call_later(self.settings.header_timeout, self._miss_head)
        elif part is _BODY:
            self._body_began = self._heard = self.loop.time()
            self._look_at_body()

    def _miss_head(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(_TOO_SLOW)
        else:
            self.leave()

    def _look_at_body(self) -> None:
        now = self.loop.time()
        if self.flow.read_paused:  # it is not the client who is slow
            self._heard = now
        deadline = min(self._heard + self.settings.body_timeout, self._body_began + self.settings.upload_timeout)
        if now >= deadline:
            self._refuse(_TOO_SLOW)
        else:
            self._timer = self.loop.call_at(deadline, self._look_at_body)


def connection_class(settings: ServerSettings) -> type[Connection]:
    """Return what uvicorn is to make connections with, for its ``http`` setting."""
    return type("Connection", (Connection,), {"settings": settings, "limit": _affordable(settings.max_connections)})


def _affordable(connections: int) -> int:
    """Return how many connections there may be, given how many descriptors."""
    try:
        import resource
    except ImportError:  # no such limit on this system
        return connections
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - _SPARE_DESCRIPTORS))


def _watch_peer(transport: asyncio.Transport, timeout: float) -> None:
    """Have the system drop a client whose machine is gone."""
    connection = transport.get_extra_info("socket")
    if connection is None:
        return
    seconds = max(1, int(timeout))
    options = [
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", seconds),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", seconds),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", seconds * 1000),
    ]
    for level, name, value in options:
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                connection.setsockopt(level, getattr(socket, name), value)


def _raw(error: ApiError) -> bytes:
    """A whole response."""
    body = error.body_bytes()
    fields = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-content-type-options": "nosniff",
        "connection": "close",
        **error.headers,
    }
    head = [f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}"]
    head += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*head, "", ""]).encode() + body
