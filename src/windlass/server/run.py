"""A server's life: the port opens, the models load, requests are served, signals drain it, and it comes down clean."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from windlass.errors import WindlassError
from windlass.server.app import make_app
from windlass.server.connections import connection_class
from windlass.server.context import Context
from windlass.server.http import Http
from windlass.server.last_call import LastCall
from windlass.server.served import ModelSpec, ServedModels
from windlass.server.settings import ServerSettings
from windlass.server.signals import Signals
from windlass.server.tasks import cancelled

EXIT_DONE = 0
EXIT_ENGINE_FAILED = 70
"""EX_SOFTWARE of sysexits.h."""

WATCH_SECONDS = 0.25
"""How often the engines are looked at."""

END_SECONDS = 5.0
"""How long engines may take to end; only one that is stuck takes longer."""

BACKLOG = 2048
"""Connections that may wait to be accepted."""

log = logging.getLogger("windlass.server")


class StartError(WindlassError):
    """The server cannot start; the message says why."""


class Server:
    """One server. It belongs to the event loop that runs it."""

    def __init__(self, specs: Sequence[ModelSpec], settings: ServerSettings) -> None:
        """Open the port; what connects waits for ``run``.

        Raises:
            StartError: it is in use, or may not be opened.
            ValueError: two models have the same name.
        """
        self._settings = settings
        self._served = ServedModels(specs)
        self._socket = _listen(settings)
        self._port = int(self._socket.getsockname()[1])
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()

    @property
    def port(self) -> int:
        """The port that was opened."""
        return self._port

    @property
    def served(self) -> ServedModels:
        """The models."""
        return self._served

    def stop(self) -> None:
        """Drain and end; the second time, end at once. What the signals do."""
        if self._stopping.is_set():
            self._hurrying.set()
        self._stopping.set()

    async def run(self, *, ready: Callable[[], None] = lambda: None) -> int:
        """Serve until a signal, or until an engine fails; return the exit code.

        Args:
            ready: called once all models are loaded.

        Raises:
            LoadError, StartError, ValueError: a model cannot be loaded.
        """
        app = LastCall(make_app(Context(self._served, self._settings)))
        http = Http(app, connection_class(self._settings))
        serving = asyncio.ensure_future(http.serve([self._socket]))
        living = asyncio.ensure_future(self._live(ready))
        try:
            await asyncio.wait((serving, living), return_when=asyncio.FIRST_COMPLETED)
            if not living.done():
                serving.result()
            return await living
        finally:
            await cancelled(living)
            await self._served.end(END_SECONDS)
            app.close()
            http.close()
            await serving

    async def _live(self, ready: Callable[[], None]) -> int:
        if not await self._unless_stopped(self._load()):
            return await self._drain()
        ready()
        watching = asyncio.ensure_future(self._watch())
        try:
            if await self._unless_stopped(asyncio.wait((watching,))):
                watching.result()
                return await self._mourn()
            return await self._drain()
        finally:
            await cancelled(watching)

    async def _load(self) -> None:
        try:
            await self._served.load()
        except (MemoryError, OSError, RuntimeError) as error:
            if isinstance(error, WindlassError):
                raise
            # What the machine lacks: memory, threads, descriptors.
            log.debug("the models cannot be loaded", exc_info=error)
            raise StartError(f"the models cannot be loaded ({type(error).__name__}: {error})") from error

    async def _unless_stopped(self, work: Coroutine[Any, Any, object]) -> bool:
        """Wait for ``work``; a signal cuts it short. Return whether it was done."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            self._served.refuse()
            task.cancel()
            # What it has begun is undone first, unless somebody is in a hurry: the end of the process undoes it, too.
            hurrying = asyncio.ensure_future(self._hurrying.wait())
            await asyncio.wait((task, hurrying), return_when=asyncio.FIRST_COMPLETED)
            hurrying.cancel()
            return False
        finally:
            task.cancel()
            stopping.cancel()

    async def _watch(self) -> None:
        """Look at the engines every now and then; return once one has failed."""
        while self._served.failure is None:
            self._served.look(WATCH_SECONDS)
            await asyncio.sleep(WATCH_SECONDS)

    async def _mourn(self) -> int:
        """Say for a while that an engine failed, so that whoever watches sees it; a signal ends that."""
        grace = self._settings.failure_grace
        log.error("an engine failed; the server exits in %g s", grace, exc_info=self._served.failure)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((stopping,), timeout=grace)
        await cancelled(stopping)
        return EXIT_ENGINE_FAILED

    async def _drain(self) -> int:
        """Let open requests finish, unless a second signal comes; return the exit code."""
        timeout = self._settings.drain_timeout
        log.info("draining for at most %g s", timeout)
        draining = asyncio.ensure_future(self._served.drain(timeout))
        hurrying = asyncio.ensure_future(self._hurrying.wait())
        # An engine that is stuck does not come to the end of its drain.
        await asyncio.wait((draining, hurrying), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        ended = await self._served.end(END_SECONDS)
        await cancelled(draining, hurrying)
        if not ended:
            log.error("an engine is stuck and could not be ended")
        failure = self._served.failure
        if failure is not None:
            log.error("an engine failed while requests finished", exc_info=failure)
        return EXIT_DONE if ended and failure is None else EXIT_ENGINE_FAILED


def serve(
    specs: Sequence[ModelSpec],
    settings: ServerSettings,
    *,
    signals: Signals,
    started: Callable[[int], None],
    ready: Callable[[], None],
) -> int:
    """Serve until a signal, in the main thread; return the exit code.

    Args:
        signals: have been noted for a while, perhaps.
        started: called with the port once it is open.
        ready: called once all models are loaded.

    Raises:
        StartError: the port cannot be opened, or the machine lacks what the models need.
        LoadError, ValueError: a model cannot be loaded.
    """

    async def main() -> int:
        server = Server(specs, settings)
        loop = asyncio.get_running_loop()
        signals.listen(lambda: _call_soon(loop, server.stop))
        try:
            started(server.port)
            return await server.run(ready=lambda: _settle(ready))
        finally:
            signals.listen(_nothing)

    return asyncio.run(main())


def _settle(ready: Callable[[], None]) -> None:
    """Exempt from garbage collections what lives as long as the process: they would stop all threads to look at it."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError):  # nobody reads what it says: no reason to stop
        ready()


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(function)


def _nothing() -> None:
    """What a signal does when the server is down."""


def _listen(settings: ServerSettings) -> socket.socket:
    # Connections inherit the protocol, and asyncio sends without delay (TCP_NODELAY) only where it is named.
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
    return listener
