"""Loading and unloading LoRA adapters while the server serves, with ``--allow-lora-updates``. The routes are vLLM's."""

from __future__ import annotations

import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request

from windlass.errors import InvalidRequestError, LoadError
from windlass.protocol.arguments import check_fields
from windlass.protocol.text_arguments import LoadAdapterFields, UnloadAdapterFields
from windlass.server.answers import answer
from windlass.server.api_errors import ApiError
from windlass.server.bodies import read_json
from windlass.server.context import Context
from windlass.server.notes import note_of
from windlass.server.openapi import errors, request_body
from windlass.server.routes.models import ModelCard, card
from windlass.server.served import Choice

ERRORS = errors(404, 413, 415)


class Unloaded(BaseModel):
    """An adapter that is no more."""

    id: str
    object: str = "model"
    deleted: bool = True


def make_router(context: Context) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1", tags=["models"])

    async def chosen(request: Request, kind: type) -> tuple[Choice, dict[str, Any]]:
        fields = check_fields(kind, await read_json(request))
        choice = Choice(context.served.find(fields.get("model")), fields["lora_name"])
        return choice, fields

    @router.post(
        "/load_lora_adapter",
        responses=ERRORS,
        openapi_extra=request_body(LoadAdapterFields, example={"lora_name": "sql", "lora_path": "/adapters/sql"}),
    )
    async def load_lora_adapter(request: Request) -> ModelCard:
        """Load a LoRA adapter beside a model, whose requests go on meanwhile."""
        choice, fields = await chosen(request, LoadAdapterFields)
        with _refusals():
            await _done(request, choice, choice.engine.load_adapter(fields["lora_name"], fields["lora_path"]))
        return card(choice, int(time.time()))

    @router.post(
        "/unload_lora_adapter",
        responses=ERRORS,
        openapi_extra=request_body(UnloadAdapterFields, example={"lora_name": "sql"}),
    )
    async def unload_lora_adapter(request: Request) -> Unloaded:
        """Refuse new requests with a LoRA adapter, wait for those that use it, and free its memory."""
        choice, fields = await chosen(request, UnloadAdapterFields)
        with _refusals():
            await _done(request, choice, choice.engine.unload_adapter(fields["lora_name"]))
        return Unloaded(id=choice.name)

    return router


async def _done(request: Request, choice: Choice, work: Coroutine[Any, Any, None]) -> None:
    await answer(request, work)
    # Not before: a name that was refused is no adapter's.
    note_of(request.scope).model = choice.name


@contextmanager
def _refusals() -> Iterator[None]:
    """Say in the words of the body what the engine says."""
    try:
        yield
    except LoadError as error:
        raise ApiError(400, str(error), code="adapter_not_loaded", param="lora_path") from error
    except InvalidRequestError as error:
        error.param = "lora_name"
        raise
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_value", param="lora_name") from error
