"""The models that are served."""

from __future__ import annotations

import time

from fastapi import APIRouter
from pydantic import BaseModel

from windlass.server.context import Context
from windlass.server.openapi import errors
from windlass.server.served import Choice


class ModelCard(BaseModel):
    """A model, or a model with an adapter, as OpenAI shows it."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "windlass"
    max_model_len: int | None = None
    """Tokens of the longest sequence, prompt and answer together; null while the model loads."""
    parent: str | None = None
    """The model that the adapter is for."""


class ModelList(BaseModel):
    """All models, the default one first."""

    object: str = "list"
    data: list[ModelCard]


def make_router(context: Context) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1/models", tags=["models"])
    started = int(time.time())

    @router.get("", responses=errors())
    async def list_models() -> ModelList:
        """All models, each with its adapters behind it."""
        choices = []
        for model in context.served.all:
            choices += [Choice(model), *(Choice(model, adapter) for adapter in model.adapters)]
        return ModelList(data=[card(choice, started) for choice in choices])

    @router.get("/{name:path}", responses=errors(404, 503))
    async def retrieve_model(name: str) -> ModelCard:
        """One model."""
        return card(context.served.choose(name), started)

    return router


def card(choice: Choice, created: int) -> ModelCard:
    """Return what is told of a model."""
    model = choice.model
    parent = None if choice.adapter is None else model.name
    return ModelCard(id=choice.name, created=created, max_model_len=model.context_length, parent=parent)
