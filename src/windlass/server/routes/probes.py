"""What an orchestrator asks: is the process well, does it take requests."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from windlass import __version__
from windlass.engine.state import EngineState
from windlass.server.context import Context


def make_router(context: Context) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["probes"])

    def report(*, only_ready: bool) -> JSONResponse:
        served = context.served
        stuck = served.is_stuck(context.settings.stall_timeout)
        ok = served.failure is None and not stuck and (served.state is EngineState.READY or not only_ready)
        state = "stuck" if stuck else served.state.value
        return JSONResponse({"status": "ok" if ok else "unavailable", "state": state}, 200 if ok else 503)

    @router.get("/livez")
    async def livez() -> JSONResponse:
        """Whether the process is well: no engine has failed, or is stuck. 503 asks for a restart."""
        return report(only_ready=False)

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        """Whether requests are taken."""
        return report(only_ready=True)

    @router.get("/health")
    async def health() -> JSONResponse:
        """The same as ``/readyz``."""
        return await readyz()

    @router.get("/version")
    async def version() -> dict[str, str]:
        """The server's version."""
        return {"version": __version__}

    return router
