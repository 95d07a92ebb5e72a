"""Errors as clients see them: the one place where exceptions become statuses and OpenAI's error body."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from windlass.errors import (
    EngineError,
    EngineFailedError,
    EngineOverloadedError,
    EngineTerminatedError,
    EngineUnloadedError,
    InvalidRequestError,
    RequestAbortedError,
    RequestTimeoutError,
)

RETRY_SECONDS = 1
"""What ``Retry-After`` says where nothing better is known."""

_MESSAGES = "/v1/messages"
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}

# OpenAI's SDK tries 408, 409, 429 and 5xx again unless this says otherwise.
_NEVER_AGAIN = {"x-should-retry": "false"}


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: of the response.
        message: for people; our own text, never that of a foreign exception. Cut off where it is very long.
        kind: the ``type`` of OpenAI's error body.
        code: short and machine-readable.
        param: the field of the body at fault.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = _cut(message, 2000)
        self.kind = kind
        self.code = code
        self.param = None if param is None else _cut(param, 200)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """OpenAI's error body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def body_bytes(self) -> bytes:
        """OpenAI's error body as JSON."""
        return json.dumps(self.body()).encode()

    def anthropic_body(self, request_id: str) -> dict[str, Any]:
        """Anthropic's error body."""
        kind = "api_error" if self.code == "engine_dead" else _ANTHROPIC_KINDS.get(self.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": request_id}

    def body_for(self, path: str, request_id: str) -> dict[str, Any]:
        """The error body that the clients of a path understand: Anthropic's on its routes, else OpenAI's."""
        is_messages = path == _MESSAGES or path.startswith(_MESSAGES + "/")
        return self.anthropic_body(request_id) if is_messages else self.body()


def _cut(text: str, limit: int) -> str:
    """What may repeat a part of the request, of which there may be megabytes."""
    return text if len(text) <= limit else f"{text[:limit]}..."


class ClientGone(Exception):  # noqa: N818  (not an error: there is nobody left to tell)
    """The client closed its connection before it was answered."""


def api_error_of(error: BaseException) -> ApiError:
    """Return how a client is told of ``error``. What it does not know becomes 500 without a word of the cause."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequestError):
        status = 404 if error.code == "model_not_found" else 400
        return ApiError(status, str(error), code=error.code, param=error.param)
    if isinstance(error, EngineOverloadedError):
        return overloaded(str(error), error.retry_after)
    if isinstance(error, RequestTimeoutError):
        return ApiError(504, str(error), kind="timeout_error", code="timeout", headers=_NEVER_AGAIN)
    if isinstance(error, RequestAbortedError):
        return unavailable(str(error), "request_cancelled")
    if isinstance(error, EngineFailedError):
        return ApiError(503, "the engine failed", kind="server_error", code="engine_dead", headers=_NEVER_AGAIN)
    if isinstance(error, EngineTerminatedError):
        return shutting_down()
    if isinstance(error, EngineUnloadedError):
        return unavailable("the model is not loaded", "model_not_ready")
    if isinstance(error, EngineError):
        return unavailable(str(error), "engine_unavailable")
    return ApiError(500, "the server failed to answer this request", kind="server_error", code="internal_error")


def shutting_down() -> ApiError:
    """Return how a client is told that the server ends. Its connection does, too: the next one may find another."""
    error = unavailable("the server is shutting down", "draining")
    error.headers["connection"] = "close"
    return error


def not_ready(name: str) -> ApiError:
    """Return how a client is told that the model ``name`` is still loading."""
    return unavailable(f"the model {name!r} is loading", "model_not_ready")


def overloaded(message: str, seconds: float = RETRY_SECONDS) -> ApiError:
    """Return how a client is told that there is too much to do, and to come again after ``seconds``."""
    return ApiError(429, message, kind="rate_limit_error", code="overloaded", headers=_retry_after(seconds))


def unavailable(message: str, code: str) -> ApiError:
    """Return how a client is told that the server cannot answer now, but soon may."""
    return ApiError(503, message, kind="server_error", code=code, headers=_retry_after(RETRY_SECONDS))


def _retry_after(seconds: float) -> dict[str, str]:
    return {"retry-after": str(max(1, math.ceil(seconds)))}
