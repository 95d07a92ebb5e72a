"""Request bodies: bounded one by one and together, parsed off the event loop when they are large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio.to_thread
import pydantic_core
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from windlass.server.api_errors import ApiError, ClientGone, overloaded

Result = TypeVar("Result")

PARSED_AT_ONCE = 1 << 16
"""Bytes of JSON that take no noticeable time to parse."""

MAX_MARKS = 250_000
"""Most brackets, commas and colons that a body may have outside of strings.

The parser keeps all other threads from running, and makes objects many times the size of their text: what it makes of a
few megabytes of ``[],[],[]`` takes a third of a second and 100 MB.
"""


class BodyLimit:
    """Refuses a body that is too large, and large bodies while too many are held.

    A body is held until its response begins, since what was parsed of it is.
    """

    def __init__(self, app: ASGIApp, *, each: int, together: int) -> None:
        """Take bodies of up to ``each`` bytes, large ones of up to ``together`` bytes at a time."""
        self._app = app
        self._each = each
        self._together = together
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what the application receives."""
        declared = Headers(scope=scope).get("content-length", "")
        received = held = 0

        def hold(size: int) -> None:
            nonlocal held
            if size > self._each:
                raise ApiError(413, f"the body is larger than {self._each} bytes", code="request_too_large")
            if size <= max(held, PARSED_AT_ONCE):
                return
            if self._held + size - held > self._together:
                raise overloaded("the server is busy with other large bodies; try again later")
            self._held += size - held
            held = size

        def release() -> None:
            nonlocal held
            self._held -= held
            held = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                hold(received)
            return message

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                release()
            await send(message)

        if declared.isdecimal():
            hold(int(declared))
        try:
            await self._app(scope, count, note)
        finally:
            release()


async def read_json(request: Request) -> dict[str, Any]:
    """Return the JSON object that is the body of ``request``.

    Raises:
        ApiError: 415 it does not say that it is JSON, 400 it is no JSON object, 413 or 429 it is too large.
        ClientGone: the client left before it had sent it all.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, "the body must be JSON: send it with 'Content-Type: application/json'", code="unsupported_media_type"
        )
    try:
        data = await request.body()
    except ClientDisconnect:
        raise ClientGone from None
    if len(data) <= PARSED_AT_ONCE:
        value = _parse(data)
    else:
        value = await anyio.to_thread.run_sync(_parse, data)
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return value


async def digest(request: Request, work: Callable[[], Result]) -> Result:
    """Return what ``work`` returns, which takes time in proportion to the body: off the event loop if that is large."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) <= PARSED_AT_ONCE:
        return work()
    return await anyio.to_thread.run_sync(work)


def _parse(data: bytes) -> Any:
    if _marks(data) > MAX_MARKS and _has_too_many_values(data):
        raise ApiError(400, "the body holds too many JSON values", code="invalid_json")
    try:
        return pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError:
        raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None


def _marks(data: bytes) -> int:
    return sum(data.count(mark) for mark in (b"[", b"{", b",", b":"))


def _has_too_many_values(data: bytes) -> bool:
    text = data.replace(rb"\\", b"").replace(rb"\"", b"")
    return text.count(b'"') > 2 * MAX_MARKS or _marks(b"".join(text.split(b'"')[::2])) > MAX_MARKS
