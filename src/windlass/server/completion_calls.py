"""What chat and text completions do alike: from a body to a call of the engine, and from its answer to a response."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from windlass.protocol.responses import ChatCompletion, ChatCompletionChunk, Completion
from windlass.serve.call import AsyncStream
from windlass.serve.engine import AsyncMLCEngine
from windlass.server.answers import DONE, EventStream, answer, data_event
from windlass.server.api_errors import ApiError, api_error_of
from windlass.server.context import Context
from windlass.server.notes import RequestNote, note_of
from windlass.server.openai_fields import FieldRules

Create = Callable[..., Awaitable[Any]]
Chunk = TypeVar("Chunk", ChatCompletionChunk, Completion)


async def respond(request: Request, context: Context, create: Create, rules: FieldRules) -> Response:
    """Answer a request for a completion.

    Args:
        create: calls the engine that is its first argument, with the arguments of the body.
        rules: for the fields that the engine does not know.

    Raises:
        ApiError, WindlassError: it is refused; an error after that is the response's own.
        ClientGone: the client left before it was answered.
    """
    settings = context.settings
    body, choice = await context.read(request)
    note = note_of(request.scope)
    arguments = rules.apply(body)
    stream = arguments.pop("stream", False)
    if not isinstance(stream, bool):
        raise ApiError(400, "stream: must be true or false", code="invalid_value", param="stream")
    if "debug_config" in arguments and not settings.enable_debug:
        raise ApiError(
            400,
            "debug_config: the server was started without --enable-debug",
            code="debug_disabled",
            param="debug_config",
        )
    arguments["model"] = choice.name
    if choice.adapter is not None:
        arguments.setdefault("lora", choice.adapter)
    given = await answer(request, _call(create, choice.engine, stream, arguments))
    if isinstance(given, AsyncStream):
        return EventStream(_events(noted(given, note)), send_timeout=settings.send_timeout)
    note_answer(given, note)
    return Response(given.model_dump_json(), media_type="application/json")


async def _call(create: Create, engine: AsyncMLCEngine, stream: bool, arguments: dict[str, Any]) -> Any:
    return await create(engine, stream=stream, **arguments)


async def _events(chunks: AsyncGenerator[ChatCompletionChunk | Completion, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield data_event(chunk.model_dump_json())
    yield DONE


def note_answer(given: ChatCompletion | Completion, note: RequestNote) -> None:
    """Note what there is to say of a whole answer."""
    note.response_id = given.id
    note.finished(choice.finish_reason for choice in given.choices)
    if given.usage is not None:
        note.prompt_tokens, note.completion_tokens = given.usage.prompt_tokens, given.usage.completion_tokens


async def noted(stream: AsyncStream[Chunk], note: RequestNote) -> AsyncGenerator[Chunk, None]:
    """The chunks of a stream, which is closed at the end; note what there is to say of it, however it ends."""
    note.response_id = stream.request_id
    try:
        async with stream:
            async for chunk in stream:
                note.finished(choice.finish_reason for choice in chunk.choices)
                yield chunk
    except Exception as error:
        note.error = api_error_of(error).code
        raise
    finally:
        usage = stream.usage
        note.prompt_tokens, note.completion_tokens = usage.prompt_tokens, usage.completion_tokens
