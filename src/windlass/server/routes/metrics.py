"""``/metrics`` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from windlass.engine.exposition import CONTENT_TYPE
from windlass.server.context import Context
from windlass.server.metrics import exposition
from windlass.server.openapi import errors


def make_router(context: Context) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["operations"])

    @router.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE: {}}}, **errors()})
    async def read_metrics() -> Response:
        """The numbers of the engines, of HTTP and of the process, in Prometheus' text format; in every state."""
        return Response(await exposition(context.served, context.http_metrics), headers={"content-type": CONTENT_TYPE})

    return router
