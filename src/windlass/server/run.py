"""A server's life: the port opens, the models load, requests are served, signals drain it, and it comes down clean."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from windlass.engine.state import EngineState
from windlass.errors import WindlassError
from windlass.server.app import make_app
from windlass.server.context import Context
from windlass.server.served import ModelSpec, ServedModels
from windlass.server.settings import ServerSettings
from windlass.server.signals import signals_call

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_ENGINE_FAILED = 70
"""EX_SOFTWARE of sysexits.h."""

WATCH_SECONDS = 0.25
"""How often the state of the engines is looked at."""

CLOSE_SECONDS = 2
"""How long connections may take to close once no answer is open any more."""

BACKLOG = 2048
"""Connections that the system accepts ahead of us: uvicorn's own number."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
log = logging.getLogger("windlass.server")


class StartError(WindlassError):
    """The server cannot start; the message says why."""


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, which would raise the signal again at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave all signals alone."""
        yield


class Server:
    """One server. It belongs to the event loop that runs it."""

    def __init__(self, specs: Sequence[ModelSpec], settings: ServerSettings) -> None:
        """Bind the port.

        Raises:
            StartError: it is in use, or may not be bound.
            ValueError: two models have the same name.
        """
        self._settings = settings
        self._served = ServedModels(specs)
        self._socket = _bind(settings)
        self._signals = 0
        self._signalled = asyncio.Event()

    @property
    def port(self) -> int:
        """The port that was bound."""
        return int(self._socket.getsockname()[1])

    @property
    def served(self) -> ServedModels:
        """The models."""
        return self._served

    def stop(self) -> None:
        """Drain and end; the second time, end at once. What the signals do."""
        self._signals += 1
        self._signalled.set()

    async def run(self, *, ready: Callable[[], None] = lambda: None) -> int:
        """Serve until a signal, or until an engine fails; return the exit code.

        Args:
            ready: called once all models are loaded.

        Raises:
            LoadError, ValueError: a model cannot be loaded.
        """
        http = _Uvicorn(_uvicorn_config(Context(self._served, self._settings)))
        serving = asyncio.ensure_future(http.serve([self._socket]))
        try:
            return await self._live(serving, ready)
        finally:
            await self._served.terminate()
            http.should_exit = True
            await serving

    async def _live(self, serving: asyncio.Task[None], ready: Callable[[], None]) -> int:
        loading = asyncio.ensure_future(self._served.load())
        signalled = asyncio.ensure_future(self._signalled.wait())
        try:
            await asyncio.wait((loading, signalled, serving), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                ready()
                failed = asyncio.ensure_future(self._failure())
                await asyncio.wait((failed, signalled, serving), return_when=asyncio.FIRST_COMPLETED)
                if not failed.cancel():
                    return await self._mourn()
        finally:
            loading.cancel()
            signalled.cancel()
            await asyncio.gather(loading, signalled, return_exceptions=True)
        await self._drain()
        return EXIT_DONE

    async def _failure(self) -> None:
        """Return once an engine has failed."""
        while self._served.state is not EngineState.FAILED:
            await asyncio.sleep(WATCH_SECONDS)

    async def _mourn(self) -> int:
        """Say for a while that the engine failed, so that whoever watches sees it."""
        log.error("the engine failed; exiting in %g s", self._settings.failure_grace)
        self._signalled.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._signalled.wait(), self._settings.failure_grace)
        return EXIT_ENGINE_FAILED

    async def _drain(self) -> None:
        """Let open requests finish, unless a second signal comes."""
        log.info("draining for at most %g s", self._settings.drain_timeout)
        draining = asyncio.ensure_future(self._served.drain(self._settings.drain_timeout))
        while not draining.done():
            if self._signals > 1:
                await self._served.terminate()
            self._signalled.clear()
            again = asyncio.ensure_future(self._signalled.wait())
            await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
            again.cancel()
        await draining


def serve(
    specs: Sequence[ModelSpec], settings: ServerSettings, *, started: Callable[[int], None], ready: Callable[[], None]
) -> int:
    """Serve until a signal, in the main thread; return the exit code.

    Args:
        started: called with the port once it is open.
        ready: called once all models are loaded.

    Raises:
        StartError: the port cannot be bound.
        LoadError, ValueError: a model cannot be loaded.
    """

    async def main() -> int:
        server = Server(specs, settings)
        with signals_call(server.stop, SIGNALS):
            started(server.port)
            return await server.run(ready=ready)

    return asyncio.run(main())


def _bind(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
    return listener


def _uvicorn_config(context: Context) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(context),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
