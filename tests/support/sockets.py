"""Clients that do as they please: bytes over a socket, without a library that would keep them from it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.lifecycle import LIMIT
from support.server import Answer, RunningServer
from windlass.engine.metrics import EngineMetrics


def head(method: str, path: str, headers: Mapping[str, str] | None = None, version: str = "1.1") -> bytes:
    """The head of a request, with a Host."""
    fields = {"Host": "localhost", **(headers or {})}
    lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def post(path: str, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole request with a body, JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
    return head("POST", path, fields) + data


class _Kept(io.BufferedReader):
    """What was received, which a response may not close, since another one may follow."""

    def close(self) -> None:
        pass

    def makefile(self, _mode: str) -> _Kept:
        return self


class RawClient:
    """One connection. A context manager: it is closed at the end."""

    def __init__(self, port: int, limit: float = LIMIT) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=limit)
        self._received = _Kept(self.socket.makefile("rb", buffering=0))

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        io.BufferedReader.close(self._received)
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, method: str = "POST") -> Answer:
        """Read one response."""
        response = http.client.HTTPResponse(self._received, method=method)
        response.begin()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())

    def rest(self) -> bytes:
        """Read until the server closes or resets the connection."""
        data = bytearray()
        with contextlib.suppress(ConnectionError):
            while part := self._received.read1(65536):
                data += part
        return bytes(data)

    def is_closed(self) -> bool:
        """Wait until the server has closed the connection; whether it did without a word."""
        return self.rest() == b""

    def reset(self) -> None:
        """End the connection with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.__exit__()


def first_status(data: bytes) -> int:
    """The status of the first response in ``data``."""
    return int(data.split(b" ", 2)[1])


_OPEN = {"01", "04", "05", "08", "09"}  # established, or half closed by one of the two


def open_connections(server: RunningServer) -> int:
    """How many connections of ``server`` its process still holds."""
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    # A socket that no process holds has no inode.
    return sum(row[1].endswith(f":{server.port:04X}") and row[3] in _OPEN and row[9] != "0" for row in rows)


def open_requests(server: RunningServer) -> int:
    """How many requests ``server`` is answering."""
    tasks = asyncio.all_tasks(server._loop)
    return sum(getattr(task.get_coro(), "__qualname__", "") == "RequestResponseCycle.run_asgi" for task in tasks)


def running_requests(server: RunningServer) -> int:
    """How many requests of the default model are in its batch."""
    return _metrics(server).num_requests_running


def aborted_requests(server: RunningServer) -> int:
    """How many requests of the default model were aborted so far."""
    return sum(_metrics(server).requests_aborted.values())


def _metrics(server: RunningServer) -> EngineMetrics:
    return asyncio.run_coroutine_threadsafe(server.engine.metrics(), server._loop).result(LIMIT)
