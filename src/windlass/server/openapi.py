"""What the routes tell their OpenAPI document about bodies and errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error body, the same on every route and status."""

    error: ErrorDetail


_DESCRIPTIONS = {
    400: "The request is not valid; `param` names the field.",
    401: "No valid API key.",
    403: "The Host header names no host of this server.",
    404: "There is no such model, or no such route.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many requests wait; `Retry-After` says when to try again.",
    500: "The server failed.",
    503: "The model is loading, the server is shutting down, or its engine failed.",
    504: "The request's own `timeout` is over.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route that may fail with ``statuses``, besides what every route may."""
    chosen = sorted({401, 403, 500, *statuses})
    return {status: {"model": ErrorBody, "description": _DESCRIPTIONS[status]} for status in chosen}


GENERATION_ERRORS = errors(400, 404, 413, 415, 429, 503, 504)
