"""Servers for tests: in a thread of the test's process, or as a process of their own; and the least of HTTP clients."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from support.lifecycle import LIMIT, wait_for
from windlass import AsyncMLCEngine, EngineConfig
from windlass.engine.state import EngineState
from windlass.server.run import Server
from windlass.server.served import ModelSpec
from windlass.server.settings import ServerSettings

DEMO = ModelSpec("windlass-demo", EngineConfig(num_threads=2))
KEY = "sk-test"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of the server-sent events, parsed; ``[DONE]`` as it is."""
        data = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one) for one in data]


def request(
    port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, limit: float = LIMIT
) -> Answer:
    """Send one request, JSON unless the body is bytes, and read the whole response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {} if data is None else {"Content-Type": "application/json"}
        connection.request(method, path, data, {**kind, **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


class RunningServer:
    """A server on an event loop in a thread of its own, on a free port of the loopback interface."""

    def __init__(self, specs: Sequence[ModelSpec], settings: ServerSettings) -> None:
        self.exit_code: int | None = None
        self.error: BaseException | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(specs, settings), name="test-server")
        self._thread.start()
        assert self._begun.wait(LIMIT)
        if self.error is not None:
            raise self.error

    def _run(self, specs: Sequence[ModelSpec], settings: ServerSettings) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self.server = Server(specs, settings)
            self._begun.set()
            self.exit_code = await self.server.run()

        try:
            asyncio.run(main())
        except BaseException as error:  # whatever it was, the test's thread must see it
            self.error = error
            self._begun.set()

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine(self) -> AsyncMLCEngine:
        """The default model's engine."""
        engine = self.server.served.all[0].loaded
        assert engine is not None
        return engine

    def wait_until_ready(self) -> None:
        assert wait_for(lambda: self.error is not None or self.server.served.state is EngineState.READY)
        if self.error is not None:
            raise self.error

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the server's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT)

    def stop(self) -> None:
        """What a signal does; nothing once the server is down."""
        with suppress(RuntimeError):  # its loop is closed
            self._loop.call_soon_threadsafe(self.server.stop)

    def join(self, limit: float = LIMIT) -> int | None:
        """Wait for the end; the exit code."""
        self._thread.join(limit)
        assert not self._thread.is_alive(), "the server did not end"
        return self.exit_code

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        return request(self.port, method, path, body, headers)

    def chat(self, text: str, **fields: Any) -> Answer:
        """Ask the default model."""
        messages = [{"role": "user", "content": text}]
        return self.request("POST", "/v1/chat/completions", {"messages": messages, **fields})


@contextmanager
def serving(*specs: ModelSpec, **settings: Any) -> Iterator[RunningServer]:
    """A server that is ready, with the demo model unless told otherwise; it is drained at the end."""
    server = RunningServer(specs or (DEMO,), ServerSettings(port=0, **settings))
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.error is None and server.exit_code is None:
            server.stop()
            server.stop()
        server.join()


class ServerProcess:
    """``windlass serve`` as a process of its own."""

    def __init__(
        self, *arguments: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = (), code: str | None = None
    ) -> None:
        program = ["-m", "windlass"] if code is None else ["-c", f"{code}\nfrom windlass.cli import main\nexit(main())"]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, *program, "serve", "--port", "0", "--log-level", "warning", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def port(self) -> int:
        """The port, once it is open."""
        found = self.wait_for_line(r"http://[^ ]*:(\d+)")
        return int(found.group(1))

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """The first match in what it writes to its standard error."""
        matches: list[re.Match[str]] = []

        def look() -> bool:
            matches.extend(filter(None, (re.search(pattern, line) for line in list(self.lines))))
            return bool(matches) or self.process.poll() is not None

        assert wait_for(look)
        assert matches, (pattern, self.lines)
        return matches[0]

    def wait_until_ready(self) -> None:
        self.wait_for_line("is ready")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, limit: float = LIMIT) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(limit)
        self._reader.join(limit)
        return code

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        return request(self.port, method, path, body, headers)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def server_process(
    *arguments: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = (), code: str | None = None
) -> Iterator[ServerProcess]:
    """``windlass serve`` with ``arguments`` on a free port; killed at the end if it still runs.

    ``prefix`` is a command that runs it, ``code`` Python that runs before it in its process.
    """
    process = ServerProcess(*arguments, env=env, prefix=prefix, code=code)
    try:
        yield process
    finally:
        process.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for ``condition``, and fail when it does not come true."""
    assert wait_for(condition)
