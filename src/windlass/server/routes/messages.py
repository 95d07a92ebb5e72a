"""``/v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's Messages."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from windlass.protocol.arguments import ChatArguments
from windlass.protocol.messages_api import CountBody, Message, MessageEvent, MessagesBody, MessagesError, TokenCount
from windlass.protocol.responses import ChatCompletion, ChatCompletionChunk
from windlass.serve.call import AsyncStream
from windlass.serve.engine import AsyncMLCEngine
from windlass.serve.text_calls import prompt_ids_of
from windlass.server.answers import EventStream, answer, named_event
from windlass.server.api_errors import ApiError
from windlass.server.bodies import digest, read_json
from windlass.server.completion_calls import note_answer, noted
from windlass.server.context import Context
from windlass.server.messages_input import chat_arguments, check_messages_body, prompt_arguments
from windlass.server.messages_output import Event, MessageWriter, whole_message
from windlass.server.notes import RequestNote, note_of
from windlass.server.openapi import GENERATION_ERRORS, event_stream, request_body

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
        given = await read_json(request)
        model = context.served.find(given.get("model"))
        engine = model.engine

        def understand() -> tuple[MessagesBody, ChatArguments]:
            body = check_messages_body(MessagesBody, given)
            return body, chat_arguments(body)

        note = note_of(request.scope)
        note.model = model.name
        body, arguments = await digest(request, understand)
        answered = await answer(request, _create(engine, arguments, body.get("stream") or False))
        if isinstance(answered, ChatCompletion):
            note_answer(answered, note)
            message = whole_message(body, answered, model=model.name)
            return Response(json.dumps(message.model_dump()), media_type="application/json")
        writer = MessageWriter(body, model=model.name, num_prompt_tokens=answered.usage.prompt_tokens)

        def fail(error: ApiError) -> Iterable[bytes]:
            yield _event_bytes(error.anthropic_body(note.request_id))

        return EventStream(_events(answered, writer, note), send_timeout=settings.send_timeout, fail=fail)

    @router.post("/count_tokens", responses=_ERRORS, openapi_extra=request_body(CountBody, example=EXAMPLE))
    async def count_tokens(request: Request) -> TokenCount:
        """Count the tokens of a prompt."""
        given = await read_json(request)
        model = context.served.find(given.get("model"))
        note_of(request.scope).model = model.name
        engine = model.engine

        def count() -> int:
            body = check_messages_body(CountBody, given)
            arguments = prompt_arguments(body)
            _, loaded = engine._parts()
            return len(prompt_ids_of(loaded, arguments))

        return TokenCount(input_tokens=await answer(request, engine._run_prepared(count)))

    return router


async def _create(
    engine: AsyncMLCEngine, arguments: ChatArguments, streams: bool
) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
    if streams:
        arguments["stream_options"] = {"include_usage": True}
    return await engine.chat.completions.create(stream=streams, **arguments)


async def _events(
    stream: AsyncStream[ChatCompletionChunk], writer: MessageWriter, note: RequestNote
) -> AsyncGenerator[bytes, None]:
    async with stream, aclosing(noted(stream, note)) as chunks:
        for event in writer.begin():
            yield _event_bytes(event)
        async for chunk in chunks:
            events = writer.add(chunk) if chunk.usage is None else writer.end(chunk.usage)
            for event in events:
                yield _event_bytes(event)


def _event_bytes(event: Event) -> bytes:
    return named_event(event["type"], event)
