"""The application: all routes, behind the guard."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from windlass import __version__
from windlass.errors import WindlassError
from windlass.server.api_errors import ApiError, ClientGone
from windlass.server.context import Context
from windlass.server.guard import ErrorBoundary, Guard, error_response, response_to
from windlass.server.routes import chat, completions, models, probes

ROUTERS = (chat, completions, models, probes)


def make_api(context: Context) -> FastAPI:
    """Return the routes with their OpenAPI document."""
    api = FastAPI(
        title="Windlass",
        version=__version__,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    for group in ROUTERS:
        api.include_router(group.make_router(context))
    api.add_exception_handler(HTTPException, _refuse)
    for kind in (ApiError, WindlassError, ClientGone, Exception):
        api.add_exception_handler(kind, _answer_error)
    return api


def make_app(context: Context) -> ASGIApp:
    """Return what uvicorn serves."""
    return ErrorBoundary(Guard(make_api(context), context.settings))


async def _answer_error(_request: Request, error: Exception) -> Response:
    return response_to(error)


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer where there is no route, or none for the method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict((isinstance(error, HTTPException) and error.headers) or {})
    message = {
        404: f"there is no route {request.url.path[:200]!r}",
        405: f"{request.url.path[:200]!r} does not take {request.method}",
    }.get(status, "the request was refused")
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "refused")
    return error_response(ApiError(status, message, code=code, headers=headers))
