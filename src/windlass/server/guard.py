"""What stands before all routes: which hosts, which keys, and how every error looks. Pure ASGI."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from windlass.server.api_errors import ApiError, ClientGone, api_error_of
from windlass.server.notes import note_of
from windlass.server.routes import page
from windlass.server.settings import ServerSettings

log = logging.getLogger("windlass.server")

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", *page.PATHS})
"""What needs no key: the probes, and the page, which asks its reader for one."""

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class _ErrorResponse(Response):
    """Tells a client of an error, in the words of the clients of ``path``, and the log of its code."""

    def __init__(self, error: ApiError, path: str) -> None:
        super().__init__(json.dumps(error.body_for(path)), error.status, error.headers, "application/json")
        self._code = error.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        note_of(scope).error = self._code
        await super().__call__(scope, receive, send)


def error_response(error: ApiError, path: str) -> Response:
    """Return the response that tells a client of ``error``, in the words of the clients of ``path``."""
    return _ErrorResponse(error, path)


class _Silence(Response):
    """Says nothing, to a client that has left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing."""


def response_to(error: Exception, path: str) -> Response:
    """Return the response to a request for ``path`` that raised ``error``."""
    if isinstance(error, ClientGone):
        return _Silence()
    told = api_error_of(error)
    if told.status == 500:
        log.error("a request failed", exc_info=error)
    return error_response(told, path)


class ErrorBoundary:
    """Answers with an error body whatever comes out of the application, unless it has been answered already."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        begun = complete = False

        async def note(message: Message) -> None:
            nonlocal begun, complete
            begun = True
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception as error:
            if begun and not complete:
                # The connection is closed in the middle of the answer, which no client takes for a whole one.
                raise
            if not begun:
                await response_to(error, scope["path"])(scope, receive, send)


class Guard:
    """Lets in only who names a known host and has a key, where there are keys. Denies by default."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in settings.api_keys]
        self._open_paths = OPEN_PATHS | ({"/metrics"} if settings.open_metrics else set())
        self._hosts = LOOPBACK_HOSTS.union({settings.host}, settings.allowed_hosts) if settings.is_local else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, and pass on."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            self._check_host(headers.get("host", ""))
            if scope["path"] not in self._open_paths:
                self._check_key(headers)
        await self._app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        # A page of another site that had its own name point here would be let in by the browser (DNS rebinding).
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if self._hosts is not None and name.lower() not in self._hosts:
            raise ApiError(403, "the Host header names no host of this server", code="host_not_allowed")

    def _check_key(self, headers: Headers) -> None:
        if not self._digests:
            return
        given = headers.get("x-api-key", "")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = token.strip()
        if not _matches_any(_digest(given.encode("utf-8", "surrogateescape")), self._digests):
            raise ApiError(
                401,
                "a valid API key is required: send it as 'Authorization: Bearer KEY'",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _matches_any(digest: bytes, known: Iterable[bytes]) -> bool:
    """Whether ``digest`` is among ``known``, in a time that does not depend on which."""
    return sum(hmac.compare_digest(digest, one) for one in known) > 0
