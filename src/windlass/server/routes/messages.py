"""``/v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's Messages."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable

import anyio
import anyio.to_thread
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from windlass.protocol.arguments import ChatArguments
from windlass.protocol.messages_api import CountBody, Message, MessageEvent, MessagesBody, MessagesError, TokenCount
from windlass.protocol.responses import ChatCompletion, ChatCompletionChunk
from windlass.serve.call import AsyncStream
from windlass.serve.engine import AsyncMLCEngine
from windlass.server.answers import EventStream, answer, named_event
from windlass.server.api_errors import ApiError
from windlass.server.bodies import digest, read_json
from windlass.server.context import Context
from windlass.server.messages_input import chat_arguments, check_messages_body, prompt_arguments
from windlass.server.messages_output import Event, MessageWriter, whole_message
from windlass.server.openapi import GENERATION_ERRORS, event_stream, request_body

_ERRORS = {status: {**told, "model": MessagesError} for status, told in GENERATION_ERRORS.items()}
EXAMPLE = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}


def make_router(context: Context) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1/messages", tags=["generation"])
    # A tokenizer keeps memory for each thread that uses it.
    one_thread = anyio.CapacityLimiter(1)

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
        text = engine.tokenizer

        def understand() -> tuple[MessagesBody, ChatArguments]:
            body = check_messages_body(MessagesBody, given)
            return body, chat_arguments(body, switches_thinking=text.switches_thinking)

        body, arguments = await digest(request, understand)
        answered = await answer(request, _create(engine, arguments, body.get("stream") or False))
        if isinstance(answered, ChatCompletion):
            message = whole_message(body, answered, model=model.name)
            return Response(json.dumps(message.model_dump()), media_type="application/json")
        writer = MessageWriter(body, model=model.name, num_prompt_tokens=answered.num_prompt_tokens)
        return EventStream(_events(answered, writer), send_timeout=settings.send_timeout, fail=_fail)

    @router.post("/count_tokens", responses=_ERRORS, openapi_extra=request_body(CountBody, example=EXAMPLE))
    async def count_tokens(request: Request) -> TokenCount:
        """Count the tokens of a prompt."""
        given = await read_json(request)
        text = context.served.find(given.get("model")).engine.tokenizer

        def count() -> int:
            body = check_messages_body(CountBody, given)
            arguments = prompt_arguments(body, switches_thinking=text.switches_thinking)
            tools = arguments.get("tools") if arguments.get("tool_choice") != "none" else None
            ids = text.encode_chat(
                arguments["messages"], tools=tools, template_kwargs=arguments.get("chat_template_kwargs")
            )
            return len(ids)

        counted = anyio.to_thread.run_sync(count, limiter=one_thread, abandon_on_cancel=True)
        return TokenCount(input_tokens=await answer(request, counted))

    return router


async def _create(
    engine: AsyncMLCEngine, arguments: ChatArguments, streams: bool
) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
    if streams:
        arguments["stream_options"] = {"include_usage": True}
    return await engine.chat.completions.create(stream=streams, **arguments)


async def _events(stream: AsyncStream[ChatCompletionChunk], writer: MessageWriter) -> AsyncGenerator[bytes, None]:
    async with stream:
        for event in writer.begin():
            yield _event_bytes(event)
        async for chunk in stream:
            events = writer.add(chunk) if chunk.usage is None else writer.end(chunk.usage)
            for event in events:
                yield _event_bytes(event)


def _fail(error: ApiError) -> Iterable[bytes]:
    yield _event_bytes(error.anthropic_body())


def _event_bytes(event: Event) -> bytes:
    return named_event(event["type"], event)
