"""uvicorn, driven by us: no signals of its own, no lifespan, and an end that has a limit."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from windlass.server.tasks import cancelled

CLOSE_SECONDS = 2.0
"""How long clients may take to read the rest of their answers once the server ends."""

TICK_SECONDS = 1.0
"""How often the date of the responses is set."""


class Http(uvicorn.Server):
    """Serves ``app`` over connections of the class ``protocol`` until ``close``. Belongs to one event loop."""

    def __init__(self, app: ASGIApp, protocol: type[asyncio.Protocol]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
            )
        )
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Have ``serve`` close the port and the idle connections, wait for the others for a moment, and return."""
        self._closing.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave all signals alone: uvicorn would raise them again at the end."""
        yield

    async def main_loop(self) -> None:
        """Wait for ``close``."""
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            while not closing.done():
                await self.on_tick(0)
                await asyncio.wait((closing,), timeout=TICK_SECONDS)
        finally:
            closing.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close everything: what has been answered is delivered, as far as clients read it in time."""
        for server in self.servers:
            server.close()
        for one in sockets or ():
            one.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if not await self._closed(CLOSE_SECONDS):
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            if not await self._closed(CLOSE_SECONDS):
                for task in list(self.server_state.tasks):
                    task.cancel()
        # From Python 3.12 on this waits for connections too.
        closed = [asyncio.ensure_future(server.wait_closed()) for server in self.servers]
        await asyncio.wait(closed, timeout=CLOSE_SECONDS)
        await cancelled(*closed)

    async def _closed(self, limit: float) -> bool:
        """Wait until no connection is left, and no task that answers one; return False when it takes longer."""
        state = self.server_state
        deadline = asyncio.get_running_loop().time() + limit
        while state.connections or state.tasks:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.01)
        return True
