"""What chat and text completions do alike: from a body to a call of the engine, and from its answer to a response."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from windlass.serve.call import AsyncStream
from windlass.serve.engine import AsyncMLCEngine
from windlass.server.answers import DONE, EventStream, answer, data_event
from windlass.server.api_errors import ApiError
from windlass.server.bodies import read_json
from windlass.server.context import Context

CHAT_FIELDS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "verbosity",
    }
)
"""Fields of OpenAI's that are taken and change nothing, since they are about accounts, storage and caches there."""

COMPLETION_FIELDS: frozenset[str] = frozenset()
OF_THE_LIBRARY = frozenset({"extra_body", "request_id", "self"})
"""Arguments of ``create()`` that make no sense in a body."""

Create = Callable[..., Awaitable[Any]]


async def respond(request: Request, context: Context, create: Create, ignored: frozenset[str]) -> Response:
    """Answer a request for a completion.

    Args:
        create: calls the engine that is its first argument, with the arguments of the body.
        ignored: fields of the body that are dropped.

    Raises:
        ApiError, WindlassError: it is refused; an error after that is the response's own.
        ClientGone: the client left before it was answered.
    """
    settings = context.settings
    arguments = await read_json(request)
    model = context.served.find(arguments.get("model"))
    stream = arguments.pop("stream", None)
    if stream is None:
        stream = False
    if not isinstance(stream, bool):
        raise ApiError(400, "stream: must be true or false", code="invalid_value", param="stream")
    for name in OF_THE_LIBRARY & arguments.keys():
        raise ApiError(400, f"unknown argument {name!r}", code="unknown_parameter", param=name)
    if arguments.get("debug_config") is not None and not settings.enable_debug:
        raise ApiError(
            400,
            "debug_config: the server was started without --enable-debug",
            code="debug_disabled",
            param="debug_config",
        )
    arguments = {name: value for name, value in arguments.items() if name not in ignored}
    if isinstance(options := arguments.get("stream_options"), dict):
        arguments["stream_options"] = {name: value for name, value in options.items() if name != "include_obfuscation"}
    arguments["model"] = model.name
    given = await answer(request, _call(create, model.engine, stream, arguments))
    if isinstance(given, AsyncStream):
        return EventStream(_events(given), send_timeout=settings.send_timeout)
    return Response(given.model_dump_json(), media_type="application/json")


async def _call(create: Create, engine: AsyncMLCEngine, stream: bool, arguments: dict[str, Any]) -> Any:
    return await create(engine, stream=stream, **arguments)


async def _events(stream: AsyncStream[BaseModel]) -> AsyncGenerator[bytes, None]:
    async with stream:
        async for chunk in stream:
            yield data_event(chunk.model_dump_json())
    yield DONE
