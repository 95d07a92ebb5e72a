"""``/v1/responses``: OpenAI's Responses, without a memory of what was said before."""

from __future__ import annotations

import json
from collections.abc import Iterable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from windlass.errors import InvalidRequestError
from windlass.protocol.arguments import ChatArguments
from windlass.protocol.responses import ChatCompletion, ChatCompletionChunk
from windlass.protocol.responses_api import Response, ResponseEvent, ResponsesBody
from windlass.serve.call import AsyncStream
from windlass.serve.engine import AsyncMLCEngine
from windlass.server.answers import EventStream, answer
from windlass.server.api_errors import ApiError
from windlass.server.bodies import digest
from windlass.server.completion_calls import note_answer
from windlass.server.context import Context
from windlass.server.notes import note_of
from windlass.server.openapi import GENERATION_ERRORS, event_stream, request_body
from windlass.server.responses_input import PARAMS, chat_arguments, check_responses_body
from windlass.server.responses_output import ResponseWriter, begin_response, whole_response
from windlass.server.translated import create_chat, event_bytes, with_adapter, written_events

EXAMPLE = {"input": "What is the capital of France?", "max_output_tokens": 32}


def make_router(context: Context) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/responses",
        response_model=Response,
        responses={200: event_stream(ResponseEvent), **GENERATION_ERRORS},
        openapi_extra=request_body(ResponsesBody, example=EXAMPLE),
    )
    async def create_response(request: Request) -> HttpResponse:
        """Answer a conversation, at once or as a stream of server-sent events. Nothing of it is kept."""
        settings = context.settings
        given, choice = await context.read(request)
        engine = choice.engine
        text = engine.tokenizer

        def understand() -> tuple[Response, ChatArguments, bool]:
            body = check_responses_body(given)
            temperature, top_p = text.defaults.temperature, text.defaults.top_p
            response = begin_response(
                body,
                model=choice.name,
                temperature=1.0 if temperature is None else temperature,
                top_p=1.0 if top_p is None else top_p,
            )
            arguments = with_adapter(chat_arguments(body), choice)
            return response, arguments, body.get("stream") or False

        note = note_of(request.scope)
        response, arguments, streams = await digest(request, understand)
        answered = await answer(request, _create(engine, arguments, streams))
        if isinstance(answered, ChatCompletion):
            note_answer(answered, note)
            return HttpResponse(json.dumps(whole_response(response, answered).to_json()), media_type="application/json")
        writer = ResponseWriter(response)

        def fail(error: ApiError) -> Iterable[bytes]:
            return map(event_bytes, writer.fail(error.message))

        return EventStream(written_events(answered, writer, note), send_timeout=settings.send_timeout, fail=fail)

    return router


async def _create(
    engine: AsyncMLCEngine, arguments: ChatArguments, streams: bool
) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
    try:
        return await create_chat(engine, arguments, streams)
    except InvalidRequestError as error:
        error.param = PARAMS.get(error.param or "", error.param)
        raise
