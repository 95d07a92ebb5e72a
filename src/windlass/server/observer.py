"""What goes on at the door: each request gets its id, is counted and timed, and leaves one line in the log."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from windlass.server.metrics import HttpMetrics
from windlass.server.notes import RequestNote

log = logging.getLogger("windlass.server.requests")

QUIET_ROUTES = frozenset({"/livez", "/readyz", "/health", "/metrics"})
"""Asked every few seconds: they are logged as details only."""

CLIENT_GONE = 499
"""What stands for the status of a request whose client left before it was answered, as in nginx."""

OTHER = "other"
"""What stands for the paths without a route, and the methods that nobody knows, so that metrics stay few."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROCESS = secrets.token_hex(10)
_NUMBERS = itertools.count(1)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Observer:
    """Watches requests pass. Pure ASGI.

    Args:
        paths: those of the routes, with the names of their parameters.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, paths: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        note = RequestNote(_request_id(scope))
        note.attach(scope)
        passage = _Passage(note, self._metrics, send)
        self._metrics.in_progress += 1
        try:
            await self._app(scope, receive, passage.send)
        except Exception:
            note.error = "internal_error"
            raise
        finally:
            self._metrics.in_progress -= 1
            self._metrics.streams -= passage.streams
            self._close(scope, note, passage)

    def _close(self, scope: Scope, note: RequestNote, passage: _Passage) -> None:
        seconds = time.perf_counter() - note.started
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        route = self._route(scope)
        self._metrics.observe(route, method, passage.status, seconds)
        level = logging.DEBUG if route in QUIET_ROUTES else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "request", extra={"fields": _line(scope, note, passage, method, route, seconds)})

    def _route(self, scope: Scope) -> str:
        path = getattr(scope.get("route"), "path_format", None) or scope["path"]
        return path if path in self._paths else OTHER


class _Passage:
    """What one response shows on its way out."""

    def __init__(self, note: RequestNote, metrics: HttpMetrics, send: Send) -> None:
        self._note = note
        self._metrics = metrics
        self._send = send
        self.status = CLIENT_GONE
        self.streams = False
        self.complete = False

    async def send(self, message: Message) -> None:
        """Pass it on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            self.streams = headers.get("content-type", "").startswith("text/event-stream")
            self._metrics.streams += self.streams
            headers["x-request-id"] = headers["request-id"] = self._note.request_id  # OpenAI's name, and Anthropic's
            headers["openai-processing-ms"] = str(round((time.perf_counter() - self._note.started) * 1e3))
            message = {**message, "headers": headers.raw}
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True


def _request_id(scope: Scope) -> str:
    """Return the client's own id, if it is one that may stand in a header and a log, or a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{_PROCESS}{next(_NUMBERS):012x}"


def _line(
    scope: Scope, note: RequestNote, passage: _Passage, method: str, route: str, seconds: float
) -> dict[str, Any]:
    client = scope.get("client")
    fields = {
        "request_id": note.request_id,
        "client": client[0] if client else None,
        "method": method,
        "route": route,
        "path": scope["path"][:200] if route == OTHER else None,
        "status": passage.status,
        "duration": round(seconds, 4),
        "model": note.model,
        "response_id": note.response_id,
        "stream": passage.streams or None,
        "prompt_tokens": note.prompt_tokens,
        "completion_tokens": note.completion_tokens,
        "finish_reason": ",".join(sorted(note.finish_reasons)) or None,
        "error": note.error,
        "client_gone": None if passage.complete or note.error else True,
    }
    return {name: value for name, value in fields.items() if value is not None}
