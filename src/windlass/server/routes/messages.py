"""``/v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's Messages."""

from __future__ import annotations

import json
from collections.abc import Iterable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from windlass.protocol.arguments import ChatArguments
from windlass.protocol.messages_api import CountBody, Message, MessageEvent, MessagesBody, MessagesError, TokenCount
from windlass.protocol.responses import ChatCompletion
from windlass.serve.prompts import prompt_ids_of
from windlass.server.answers import EventStream, answer
from windlass.server.api_errors import ApiError
from windlass.server.bodies import digest
from windlass.server.completion_calls import note_answer
from windlass.server.context import Context
from windlass.server.messages_input import chat_arguments, check_messages_body, prompt_arguments
from windlass.server.messages_output import MessageWriter, whole_message
from windlass.server.notes import note_of
from windlass.server.openapi import GENERATION_ERRORS, event_stream, request_body
from windlass.server.translated import create_chat, event_bytes, with_adapter, written_events

_ERRORS = {status: {**told, "model": MessagesError} for status, told in GENERATION_ERRORS.items()}
EXAMPLE = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}


def make_router(context: Context) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1/messages", tags=["generation"])

    @router.post(
        "",
        response_model=Message,
        responses={200: event_stream(MessageEvent), **_ERRORS},
        openapi_extra=request_body(MessagesBody, example={**EXAMPLE, "max_tokens": 32}),
    )
    async def create_message(request: Request) -> Response:
        """Answer a conversation, at once or as a stream of server-sent events."""
        settings = context.settings
        given, choice = await context.read(request)
        engine = choice.engine

        def understand() -> tuple[MessagesBody, ChatArguments]:
            body = check_messages_body(MessagesBody, given)
            return body, with_adapter(chat_arguments(body), choice)

        note = note_of(request.scope)
        body, arguments = await digest(request, understand)
        answered = await answer(request, create_chat(engine, arguments, body.get("stream") or False))
        if isinstance(answered, ChatCompletion):
            note_answer(answered, note)
            message = whole_message(body, answered, model=choice.name)
            return Response(json.dumps(message.model_dump()), media_type="application/json")
        writer = MessageWriter(body, model=choice.name, num_prompt_tokens=answered.usage.prompt_tokens)

        def fail(error: ApiError) -> Iterable[bytes]:
            yield event_bytes(error.anthropic_body(note.request_id))

        return EventStream(written_events(answered, writer, note), send_timeout=settings.send_timeout, fail=fail)

    @router.post("/count_tokens", responses=_ERRORS, openapi_extra=request_body(CountBody, example=EXAMPLE))
    async def count_tokens(request: Request) -> TokenCount:
        """Count the tokens of a prompt."""
        given, model = await context.read(request)
        engine = model.engine

        def count() -> int:
            body = check_messages_body(CountBody, given)
            arguments = prompt_arguments(body)
            _, loaded = engine._parts()
            return len(prompt_ids_of(loaded, arguments))

        return TokenCount(input_tokens=await answer(request, engine._run_prepared(count)))

    return router
