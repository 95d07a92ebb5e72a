"""``/v1/embeddings``."""

from __future__ import annotations

import anyio.to_thread
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from windlass.protocol.arguments import EmbeddingArguments
from windlass.protocol.responses import EmbeddingList
from windlass.server.answers import answer
from windlass.server.context import Context
from windlass.server.notes import note_of
from windlass.server.openai_fields import OF_THE_LIBRARY, FieldRules
from windlass.server.openapi import GENERATION_ERRORS, request_body

EXAMPLE = {"input": ["How deep is the sea?", "Eleven kilometres at most."]}

_RULES = FieldRules()


def make_router(context: Context) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["embeddings"])

    @router.post(
        "/v1/embeddings",
        response_model=EmbeddingList,
        responses={**GENERATION_ERRORS},
        openapi_extra=request_body(EmbeddingArguments, without=OF_THE_LIBRARY, example=EXAMPLE),
    )
    async def create_embeddings(request: Request) -> Response:
        """Turn texts into vectors, with a model for embeddings; up to 2048 inputs in one call."""
        body, model = await context.read(request)
        arguments = _RULES.apply(body)
        arguments["model"] = model.name
        given = await answer(request, model.engine.embeddings.create(**arguments))
        note = note_of(request.scope)
        note.prompt_tokens = given.usage.prompt_tokens
        # Millions of numbers take longer to write than an event loop may be kept.
        text = await anyio.to_thread.run_sync(given.model_dump_json)
        return Response(text, media_type="application/json")

    return router
