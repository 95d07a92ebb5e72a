"""What is known of text without running a model: its tokens, their text, and the prompt of a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from windlass.protocol.text_arguments import ConversationFields, DetokenizeFields, TokenizeFields
from windlass.serve.call import Host
from windlass.serve.text_calls import apply_template, detokenize, tokenize
from windlass.server.answers import answer
from windlass.server.context import Context
from windlass.server.openapi import errors, request_body

Result = TypeVar("Result")
ERRORS = errors(404, 413, 415)


class Tokens(BaseModel):
    """Token ids."""

    tokens: list[int]
    count: int
    max_model_len: int
    """Tokens of the longest sequence, prompt and answer together."""
    token_strs: list[str] | None
    """The text of each token, if asked for."""


class Prompt(BaseModel):
    """Text for the model."""

    prompt: str


def make_router(context: Context) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["text"])

    async def run(request: Request, call: Callable[[Host, Mapping[str, Any]], Result]) -> Result:
        fields, model = await context.read(request)
        engine = model.engine
        return await answer(request, engine._run_prepared(partial(call, engine, fields)))

    @router.post(
        "/tokenize",
        response_model=Tokens,
        responses=ERRORS,
        openapi_extra=request_body(TokenizeFields, example={"prompt": "The capital of France"}),
    )
    async def create_tokens(request: Request) -> Response:
        """The tokens of a text, or of a conversation, as a completion would have them."""
        return _json(await run(request, _tokens_json))

    @router.post(
        "/detokenize",
        response_model=Prompt,
        responses=ERRORS,
        openapi_extra=request_body(DetokenizeFields, example={"tokens": [72, 101]}),
    )
    async def create_text(request: Request) -> Response:
        """The text of tokens, without special ones."""
        return _json(Prompt(prompt=await run(request, detokenize)).model_dump_json())

    @router.post(
        "/apply-template",
        response_model=Prompt,
        responses=ERRORS,
        openapi_extra=request_body(ConversationFields, example={"messages": [{"role": "user", "content": "Hello!"}]}),
    )
    async def create_prompt(request: Request) -> Response:
        """The prompt that the model's chat template makes of a conversation."""
        return _json(Prompt(prompt=await run(request, apply_template)).model_dump_json())

    return router


def _tokens_json(host: Host, fields: Mapping[str, Any]) -> str:
    """Return the response to ``/tokenize``, made in the same thread, since it may be long."""
    made = tokenize(host, fields)
    tokens = Tokens(
        tokens=list(made.ids),
        count=len(made.ids),
        max_model_len=made.context_length,
        token_strs=None if made.texts is None else list(made.texts),
    )
    return tokens.model_dump_json()


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")
