"""``/v1/chat/completions``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from windlass.protocol.arguments import ChatArguments
from windlass.protocol.responses import ChatCompletion, ChatCompletionChunk
from windlass.server.completion_calls import respond
from windlass.server.context import Context
from windlass.server.openai_fields import CHAT, OF_THE_LIBRARY
from windlass.server.openapi import GENERATION_ERRORS, ErrorBody, event_stream, request_body

EXAMPLE = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 32}


def make_router(context: Context) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: event_stream(ChatCompletionChunk | ErrorBody, ends_with_done=True), **GENERATION_ERRORS},
        openapi_extra=request_body(
            ChatArguments, without=OF_THE_LIBRARY, ignored=CHAT.taken, streams=True, example=EXAMPLE
        ),
    )
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation, at once or as a stream of server-sent events, which ends with `[DONE]` or an error."""

        def create(engine: Any, /, **arguments: Any) -> Any:
            return engine.chat.completions.create(**arguments)

        return await respond(request, context, create, CHAT)

    return router
