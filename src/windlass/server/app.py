"""The application: all routes, behind the guard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from windlass import __version__
from windlass.errors import WindlassError
from windlass.server.api_errors import ApiError, ClientGone
from windlass.server.bodies import BodyLimit
from windlass.server.context import Context
from windlass.server.guard import CrossOrigin, ErrorBoundary, Guard, NoSniff, error_response, open_paths, response_to
from windlass.server.observer import Observer
from windlass.server.openapi import finish
from windlass.server.routes import (
    adapters,
    chat,
    completions,
    debug,
    embeddings,
    messages,
    metrics,
    models,
    page,
    probes,
    responses,
    tokens,
)
from windlass.server.settings import ServerSettings

ROUTERS = (chat, completions, embeddings, responses, messages, models, tokens, metrics, page, probes)


class Api(FastAPI):
    """The routes, and a document that says all of them."""

    def __init__(self, settings: ServerSettings) -> None:
        super().__init__(
            title="Windlass",
            version=__version__,
            docs_url=None,  # its page would load scripts from elsewhere
            redoc_url=None,
            redirect_slashes=False,
        )
        self._settings = settings
        self._document: dict[str, Any] | None = None

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        if self._document is None:
            self._document = finish(super().openapi(), self._settings, open_paths(self._settings))
        return self._document


def make_routers(context: Context) -> list[APIRouter]:
    """Return the routes, by group."""
    settings = context.settings
    groups = list(ROUTERS)
    if settings.allow_lora_updates:
        groups.append(adapters)
    if settings.enable_debug:
        groups.append(debug)
    return [group.make_router(context) for group in groups]


def make_api(context: Context, routers: Iterable[APIRouter]) -> FastAPI:
    """Return the routes with their OpenAPI document."""
    api = Api(context.settings)
    for router in routers:
        api.include_router(router)
    api.add_exception_handler(HTTPException, _refuse)
    api.add_exception_handler(RequestValidationError, _refuse_parameters)
    for kind in (ApiError, WindlassError, ClientGone, Exception):
        api.add_exception_handler(kind, _answer_error)
    return api


def make_app(context: Context) -> ASGIApp:
    """Return what uvicorn serves."""
    settings = context.settings
    routers = make_routers(context)
    app: ASGIApp = make_api(context, routers)
    app = BodyLimit(app, each=settings.max_body_bytes, together=settings.max_bodies_bytes)
    app = ErrorBoundary(Guard(app, settings))
    if settings.cors_origins:
        app = CrossOrigin(app, settings.cors_origins)
    paths = [route.path_format for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return NoSniff(Observer(app, context.http_metrics, ["/openapi.json", *paths]))


async def _answer_error(request: Request, error: Exception) -> Response:
    return response_to(error, request.scope)


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer where there is no route, or none for the method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict((isinstance(error, HTTPException) and error.headers) or {})
    message = {
        404: f"there is no route {request.url.path[:200]!r}",
        405: f"{request.url.path[:200]!r} does not take {request.method}",
    }.get(status, "the request was refused")
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "refused")
    return error_response(ApiError(status, message, code=code, headers=headers), request.scope)


async def _refuse_parameters(request: Request, error: Exception) -> Response:
    """Answer where FastAPI found a parameter wrong."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": "invalid"}
    name = str(first["loc"][-1]) if first["loc"] else None
    return error_response(ApiError(400, f"{name}: {first['msg']}", code="invalid_value", param=name), request.scope)
