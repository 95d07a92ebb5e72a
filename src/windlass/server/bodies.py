"""Request bodies: read up to a limit, parsed off the event loop when they are large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio.to_thread
import pydantic_core
from starlette.requests import ClientDisconnect, Request

from windlass.server.api_errors import ApiError, ClientGone

Result = TypeVar("Result")

PARSED_AT_ONCE = 1 << 16
"""Bytes of JSON that take no noticeable time to parse."""

_PATIENCE = 16
# A client that is cut off while it sends does not read why; so this many times the limit is read and dropped first.


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """Return the JSON object that is the body of ``request``.

    Args:
        limit: most bytes the body may have.

    Raises:
        ApiError: 413 it is larger, 415 it does not say that it is JSON, 400 it is no JSON object.
        ClientGone: the client left before it had sent it all.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, "the body must be JSON: send it with 'Content-Type: application/json'", code="unsupported_media_type"
        )
    data = await _read(request, limit)
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


async def _read(request: Request, limit: int) -> bytes:
    data = bytearray()
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                data += part
            elif size > limit * _PATIENCE:
                break
    except ClientDisconnect:
        raise ClientGone from None
    if size > limit:
        raise ApiError(
            413, f"the body is larger than {limit} bytes", code="request_too_large", headers={"connection": "close"}
        )
    return bytes(data)


def _parse(data: bytes) -> Any:
    try:
        return pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError:
        raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None
