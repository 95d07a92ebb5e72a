"""Who is asked: a server over HTTP, or an engine in this process. Both leave a trace, which is read afterwards."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from serving.http_client import Client, ProtocolError
from serving.started import StartedServer
from serving.workload import Request
from windlass import AsyncMLCEngine, EngineConfig, EngineError, RequestError

Endpoint = Literal["chat", "completions"]
DONE = b"[DONE]"


@dataclass
class Trace:
    """One request as it went, with times of ``time.perf_counter()``.

    Attributes:
        events: (when, chunk): the bytes of a server-sent event, or an object of the engine's.
        failure: why there is no answer, or not all of it; empty otherwise.
    """

    sent: float
    ended: float = 0.0
    events: list[tuple[float, Any]] = field(default_factory=list)
    failure: str = ""


class Target(Protocol):
    """Somebody who answers requests."""

    name: str

    async def ask(self, request: Request) -> Trace:
        """Send one request and take its whole answer. Failures are in the trace."""
        ...

    def processor_seconds(self) -> float | None:
        """Processor time of another process that answers, so far; None for this process, or where nobody knows."""
        ...

    async def close(self) -> None: ...


def arguments_of(request: Request, endpoint: Endpoint, extra: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's arguments of a streamed call."""
    message = {"messages": [{"role": "user", "content": request.prompt}]}
    return {
        **(message if endpoint == "chat" else {"prompt": request.prompt}),
        "max_tokens": request.output_tokens,
        "seed": request.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        **extra,
    }


class ServerTarget:
    """A server over HTTP."""

    name = "server"

    def __init__(
        self,
        client: Client,
        model: str | None,
        endpoint: Endpoint,
        extra: Mapping[str, Any],
        timeout: float,
        server: StartedServer | None = None,
    ) -> None:
        """``server`` is the process, if it is ours."""
        self._client = client
        self._path = "/chat/completions" if endpoint == "chat" else "/completions"
        self._endpoint = endpoint
        self._extra = {**({"model": model} if model else {}), **extra}
        self._timeout = timeout
        self._server = server

    async def ask(self, request: Request) -> Trace:
        body = json.dumps(arguments_of(request, self._endpoint, self._extra)).encode()
        trace = Trace(time.perf_counter())
        try:
            answer = await asyncio.wait_for(self._client.post(self._path, body), self._timeout)
        except (TimeoutError, asyncio.TimeoutError):
            trace.failure = "timeout"
        except ProtocolError as error:
            trace.failure = f"not HTTP: {error}"
        except OSError as error:
            trace.failure = f"no connection ({type(error).__name__})"
        else:
            trace.events = answer.events
            if answer.status != 200:
                trace.failure = f"{answer.status or 'closed before an answer'} {code_of(answer.body)}".strip()
            elif not answer.whole:
                trace.failure = "cut"
        trace.ended = time.perf_counter()
        return trace

    def processor_seconds(self) -> float | None:
        return None if self._server is None else self._server.processor_seconds()

    async def close(self) -> None:
        await self._client.close()


class EngineTarget:
    """An ``AsyncMLCEngine`` in this process."""

    name = "in process"

    def __init__(
        self, model: str | None, config: Mapping[str, Any], endpoint: Endpoint, extra: Mapping[str, Any]
    ) -> None:
        settings = {"mode": "server", "verbose": False, **config}
        self._engine = AsyncMLCEngine(model, engine_config=EngineConfig(**settings))
        calls = self._engine.chat.completions if endpoint == "chat" else self._engine.completions
        self._create: Any = calls.create
        self._endpoint = endpoint
        self._extra = extra

    async def ask(self, request: Request) -> Trace:
        arguments = arguments_of(request, self._endpoint, self._extra)
        trace = Trace(time.perf_counter())
        try:
            async for chunk in await self._create(**arguments):
                trace.events.append((time.perf_counter(), chunk))
            trace.events.append((time.perf_counter(), DONE))
        except (EngineError, RequestError) as error:
            trace.failure = type(error).__name__
        trace.ended = time.perf_counter()
        return trace

    def processor_seconds(self) -> float | None:
        return None

    async def close(self) -> None:
        await self._engine.aterminate()


def code_of(body: bytes | bytearray) -> str:
    """The code, or else the type, of an OpenAI error envelope; empty where there is none."""
    try:
        error = json.loads(body)["error"]
        return str(error.get("code") or error.get("type") or "")
    except (ValueError, TypeError, KeyError, AttributeError):
        return ""
