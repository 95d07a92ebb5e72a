"""``/v1/completions``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from windlass.protocol.arguments import CompletionArguments
from windlass.protocol.responses import Completion
from windlass.server.api_errors import ApiError
from windlass.server.completion_calls import respond
from windlass.server.context import Context
from windlass.server.openai_fields import COMPLETIONS, OF_THE_LIBRARY
from windlass.server.openapi import GENERATION_ERRORS, ErrorBody, event_stream, request_body

EXAMPLE = {"prompt": "The capital of France is", "max_tokens": 8}

MAX_PROMPTS = 64
MAX_ANSWERS = 128


def make_router(context: Context) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/completions",
        response_model=Completion,
        responses={200: event_stream(Completion | ErrorBody, ends_with_done=True), **GENERATION_ERRORS},
        openapi_extra=request_body(
            CompletionArguments, without=OF_THE_LIBRARY, ignored=COMPLETIONS.taken, streams=True, example=EXAMPLE
        ),
    )
    async def create_completion(request: Request) -> Response:
        """Continue a text, at once or as a stream of server-sent events, which ends with `[DONE]` or an error.

        There may be up to 64 prompts, and up to 128 answers, which is prompts times `n`.
        """

        def create(engine: Any, /, **arguments: Any) -> Any:
            _refuse_too_many(arguments)
            return engine.completions.create(**arguments)

        return await respond(request, context, create, COMPLETIONS)

    return router


def _refuse_too_many(arguments: dict[str, Any]) -> None:
    """A library's caller knows how much it can take; a server's does not know who else is there."""
    prompts, choices = arguments.get("prompt"), arguments.get("n")
    if not isinstance(prompts, list) or not isinstance(prompts[0] if prompts else None, (str, list)):
        return
    num_answers = len(prompts) * (choices if isinstance(choices, int) else 1)
    if len(prompts) > MAX_PROMPTS or num_answers > MAX_ANSWERS:
        raise ApiError(
            400,
            f"prompt: there may be {MAX_PROMPTS} prompts and {MAX_ANSWERS} answers in one call, not {len(prompts)} and "
            f"{num_answers}",
            code="invalid_value",
            param="prompt",
        )
