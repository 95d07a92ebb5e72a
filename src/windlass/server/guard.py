"""What stands before all routes: which hosts, pages and keys, and how every error looks. Pure ASGI."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
from collections.abc import Collection, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from windlass.server.api_errors import ApiError, ClientGone, api_error_of
from windlass.server.notes import note_of
from windlass.server.routes import page
from windlass.server.settings import ServerSettings

log = logging.getLogger("windlass.server")

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", *page.PATHS})
"""What never needs a key: the probes, and the page, which asks its reader for one."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""

MAX_HEADERS = 100
_CLOSE = {"connection": "close"}


def open_paths(settings: ServerSettings) -> frozenset[str]:
    """Return what needs no key."""
    return OPEN_PATHS | {"/metrics"} if settings.open_metrics else OPEN_PATHS


def error_response(error: ApiError, scope: Scope) -> Response:
    """Return the response that tells a client of ``error``, in the words of the clients of its path; note its code."""
    note = note_of(scope)
    note.error = error.code
    body = error.body_for(scope["path"], note.request_id)
    return Response(json.dumps(body), error.status, error.headers, "application/json")


class _Silence(Response):
    """Says nothing, to a client that has left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing."""


def response_to(error: Exception, scope: Scope) -> Response:
    """Return the response to the request of ``scope``, which raised ``error``."""
    if isinstance(error, ClientGone):
        return _Silence()
    told = api_error_of(error)
    if told.status == 500:
        log.error("a request failed", exc_info=error)
    return error_response(told, scope)


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
                await response_to(error, scope)(scope, receive, send)


class Guard:
    """Lets in only who names a known host, comes from no foreign page and has a key, where there are keys.

    Denies by default: what needs no key is written down in ``open_paths``.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._max_header_bytes = settings.max_header_bytes
        self._digests = [_digest(key.encode()) for key in settings.api_keys]
        self._open_paths = open_paths(settings)
        named = {name.lower() for name in settings.allowed_hosts}
        self._hosts = {"localhost", settings.host.lower()} | named if settings.is_local or named else None
        self._origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, and pass on."""
        headers = Headers(scope=scope)
        self._check_head(scope, headers)
        self._check_host(headers.get("host", ""), scope.get("server"))
        self._check_origin(scope["method"], headers)
        if scope["path"] not in self._open_paths:
            self._check_key(headers)
        if scope["method"] == "HEAD":  # the connection drops the body
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)

    def _check_head(self, scope: Scope, headers: Headers) -> None:
        if "transfer-encoding" in headers and ("content-length" in headers or scope["http_version"] == "1.0"):
            # A proxy in front may go by the other one, and take a part of the body for a request of its own.
            raise ApiError(400, "the length of the body is ambiguous", code="malformed_request", headers=_CLOSE)
        if scope["http_version"] not in ("1.1", "1.0"):
            raise ApiError(400, "the version must be HTTP/1.1", code="malformed_request", headers=_CLOSE)
        if not scope["path"].startswith("/"):
            raise ApiError(400, "the target of a request must be a path", code="malformed_request", headers=_CLOSE)
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in headers.raw)
        if len(headers.raw) > MAX_HEADERS or size > self._max_header_bytes:
            raise ApiError(431, "the head of the request is too long", code="headers_too_large")

    def _check_host(self, host: str, server: tuple[str, int] | None) -> None:
        # A page of another site that had its own name point here would be let in by the browser (DNS rebinding).
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if self._hosts is None or name.lower() in self._hosts:
            return
        address: ipaddress.IPv4Address | ipaddress.IPv6Address | None = None
        try:
            is_v6 = name.startswith("[") and name.endswith("]")
            address = ipaddress.IPv6Address(name[1:-1]) if is_v6 else ipaddress.IPv4Address(name)
        except ValueError:
            pass
        # An address, unlike a name, cannot be made to point elsewhere: neither this machine's, nor the one it called.
        if address is None or not (address.is_loopback or (server is not None and str(address) == server[0])):
            raise ApiError(403, "the Host header names no host of this server", code="host_not_allowed")

    def _check_origin(self, method: str, headers: Headers) -> None:
        # Browsers let any page send some requests anywhere (CSRF); they say so, and nobody else does.
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if method in SAFE_METHODS or origin in self._origins or site in ("same-origin", "none"):
            return
        if site is None and (origin is None or origin.partition("://")[2] == headers.get("host")):
            return
        raise ApiError(
            403, "pages of this origin may not call; --cors-origin names those that may", code="origin_not_allowed"
        )

    def _check_key(self, headers: Headers) -> None:
        if not self._digests:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = (token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", ""))
        # Both, so that the time taken tells nothing.
        if sum(_matches_any(_digest(key.encode("latin-1")), self._digests) for key in given) == 0:
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


class CrossOrigin:
    """Tells browsers that pages of these origins may call."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._cors = CORSMiddleware(
            app, allow_origins=origins, allow_methods=("*",), allow_headers=("*",), expose_headers=("retry-after",)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what a browser asks before it sends a page's request, without a key; say nothing to other pages."""
        known = Headers(scope=scope).get("origin") in self._origins
        await (self._cors if known else self._app)(scope, receive, send)


class NoSniff:
    """Has browsers take each response for what it says that it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add a header to the response."""

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-content-type-options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, add)
