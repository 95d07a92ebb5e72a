"""``/v1/completions``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from windlass.protocol.arguments import CompletionArguments
from windlass.protocol.responses import Completion
from windlass.server.completion_calls import respond
from windlass.server.context import Context
from windlass.server.openai_fields import COMPLETIONS, OF_THE_LIBRARY
from windlass.server.openapi import GENERATION_ERRORS, event_stream, request_body

EXAMPLE = {"prompt": "The capital of France is", "max_tokens": 8}


def make_router(context: Context) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/completions",
        response_model=Completion,
        responses={200: event_stream(Completion), **GENERATION_ERRORS},
        openapi_extra=request_body(
            CompletionArguments, without=OF_THE_LIBRARY, ignored=COMPLETIONS.taken, streams=True, example=EXAMPLE
        ),
    )
    async def create_completion(request: Request) -> Response:
        """Continue a text, at once or as a stream of server-sent events, which ends with `[DONE]` or an error."""

        def create(engine: Any, **arguments: Any) -> Any:
            return engine.completions.create(**arguments)

        return await respond(request, context, create, COMPLETIONS)

    return router
