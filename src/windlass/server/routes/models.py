"""The models that are served."""

from __future__ import annotations

import time

from fastapi import APIRouter
from pydantic import BaseModel

from windlass.server.context import Context
from windlass.server.openapi import errors
from windlass.server.served import ServedModel


class ModelCard(BaseModel):
    """A model, as OpenAI shows it."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "windlass"
    max_model_len: int | None = None
    """Tokens of the longest sequence, prompt and answer together; null while the model loads."""


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
        """All models."""
        return ModelList(data=[card(model) for model in context.served.all])

    @router.get("/{name:path}", responses=errors(404, 503))
    async def retrieve_model(name: str) -> ModelCard:
        """One model."""
        return card(context.served.find(name))

    def card(model: ServedModel) -> ModelCard:
        return ModelCard(id=model.name, created=started, max_model_len=model.context_length)

    return router
