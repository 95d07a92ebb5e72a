"""``/v1/completions``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from windlass.protocol.responses import Completion
from windlass.server.completion_calls import COMPLETION_FIELDS, respond
from windlass.server.context import Context
from windlass.server.openapi import GENERATION_ERRORS


def make_router(context: Context) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/completions", response_model=Completion, responses=GENERATION_ERRORS)
    async def create_completion(request: Request) -> Response:
        """Continue a text, at once or as a stream of server-sent events."""

        def create(engine: Any, **arguments: Any) -> Any:
            return engine.completions.create(**arguments)

        return await respond(request, context, create, COMPLETION_FIELDS)

    return router
