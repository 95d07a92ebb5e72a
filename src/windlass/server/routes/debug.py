"""What MLC-LLM serves for those who look into an engine; with ``--enable-debug`` only."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import anyio.to_thread
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from windlass.engine.metrics import EngineMetrics, Histogram
from windlass.protocol.arguments import check_fields
from windlass.protocol.text_arguments import EngineFields
from windlass.serve.engine import AsyncMLCEngine
from windlass.server.api_errors import ApiError
from windlass.server.bodies import read_json
from windlass.server.context import Context
from windlass.server.openapi import errors, request_body

ERRORS = errors(404, 413, 415)


def make_router(context: Context) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/debug", tags=["debug"])
    body = request_body(EngineFields, example={})

    async def engine_of(request: Request) -> AsyncMLCEngine:
        fields = check_fields(EngineFields, await read_json(request))
        return context.served.find(fields.get("model")).engine

    @router.post("/dump_event_trace", response_class=Response, responses=ERRORS, openapi_extra=body)
    async def dump_event_trace(request: Request) -> Response:
        """What each request and step did, as Chrome trace events: save it, and open it in Perfetto."""
        trace = (await engine_of(request)).trace_recorder
        if trace is None:
            raise ApiError(400, "the server was started without --enable-tracing", code="tracing_disabled")
        return Response(await anyio.to_thread.run_sync(trace.json), media_type="application/json")

    @router.post("/dump_engine_metrics", response_class=Response, responses=ERRORS, openapi_extra=body)
    async def dump_engine_metrics(request: Request) -> Response:
        """What the engine measures, under the names of ``engine.metrics()``."""
        metrics = await (await engine_of(request)).metrics()
        return Response(json.dumps(_plain(metrics)), media_type="application/json")

    @router.post("/reset_engine", response_class=Response, responses=ERRORS, openapi_extra=body)
    async def reset_engine(request: Request) -> Response:
        """Abort every request, and forget the prefix cache and the metrics."""
        await (await engine_of(request)).reset()
        return Response("{}", media_type="application/json")

    return router


def _plain(metrics: EngineMetrics) -> dict[str, Any]:
    """Return the metrics as JSON has them."""
    plain = dict(metrics)
    plain["state"] = metrics.state.value
    for name, value in plain.items():
        if isinstance(value, Histogram):
            plain[name] = dataclasses.asdict(value)
    return plain
