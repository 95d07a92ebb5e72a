"""``/v1/chat/completions``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from windlass.protocol.responses import ChatCompletion
from windlass.server.completion_calls import CHAT_FIELDS, respond
from windlass.server.context import Context
from windlass.server.openapi import GENERATION_ERRORS


def make_router(context: Context) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=GENERATION_ERRORS)
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation, at once or as a stream of server-sent events."""

        def create(engine: Any, **arguments: Any) -> Any:
            return engine.chat.completions.create(**arguments)

        return await respond(request, context, create, CHAT_FIELDS)

    return router
