"""HTTP/1.1 on a bare socket, so that a client can also do what no library would: stop, leave, reset, read slowly."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

LIMIT = 60.0
"""Seconds that a client waits for the next bytes; longer is a hang."""


@dataclass
class Reply:
    """What came back.

    Attributes:
        events: (event name or "", data) of each server-sent event.
        whole: it ended where HTTP says it ends.
    """

    status: int
    headers: dict[str, str]
    body: bytes = b""
    events: list[tuple[str, str]] = field(default_factory=list)
    whole: bool = False

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    def json(self) -> Any:
        """The body as JSON; None if it is something else."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class Wire:
    """One connection and one exchange. ``async with Wire(port) as wire``; leaving closes it.

    Args:
        narrow: with a receive buffer of a few KiB, so that a reader who pauses holds the server up.
    """

    def __init__(self, port: int, *, narrow: bool = False) -> None:
        self._port = port
        self._narrow = narrow

    async def __aenter__(self) -> Wire:
        self.socket = socket.socket()
        if self._narrow:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(self.socket, ("127.0.0.1", self._port))
            self._reader, self._writer = await asyncio.open_connection(sock=self.socket, limit=2048)
        except BaseException:
            self.socket.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return

    def reset(self) -> None:
        """Leave with a reset instead of an orderly end."""
        real = self._writer.get_extra_info("socket")
        real.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def reply(self) -> Reply:
        """Read status and headers; ``read`` or ``events`` go on from there.

        Raises:
            OSError, EOFError: the server has closed the connection.
            TimeoutError: nothing came within ``LIMIT`` seconds.
        """
        lines: list[str] = []
        while not lines or lines[-1]:
            lines.append((await self._within(self._reader.readuntil(b"\r\n"))).decode("latin-1").rstrip("\r\n"))
        pairs = (line.partition(":") for line in lines[1:-1])
        return Reply(int(lines[0].split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs})

    async def read(self, reply: Reply, *, pause: float = 0.0) -> Reply:
        """Read the rest, with pauses if asked; an end too early leaves ``whole`` False."""
        if reply.is_stream:
            async for _ in self.events(reply):
                await asyncio.sleep(pause)
            return reply
        async for part in self._parts(reply):
            reply.body += part
            await asyncio.sleep(pause)
        return reply

    async def events(self, reply: Reply) -> AsyncIterator[tuple[str, str]]:
        """The server-sent events, which are also added to the reply. Not to be left and begun again."""
        rest, name, data = b"", "", []
        async for part in self._parts(reply):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                text = line.decode().rstrip("\r")
                key, _, value = text.partition(":")
                if key == "event":
                    name = value.strip()
                elif key == "data":
                    data.append(value.removeprefix(" "))
                elif not text and data:
                    reply.events.append((name, "\n".join(data)))
                    yield reply.events[-1]
                    name, data = "", []

    async def _parts(self, reply: Reply) -> AsyncIterator[bytes]:
        try:
            if "chunked" in reply.headers.get("transfer-encoding", ""):
                while size := int(await self._within(self._reader.readuntil(b"\r\n")), 16):
                    yield await self._within(self._reader.readexactly(size))
                    await self._within(self._reader.readexactly(2))
                await self._within(self._reader.readuntil(b"\r\n"))
            else:
                yield await self._within(self._reader.readexactly(int(reply.headers.get("content-length", 0))))
        except (OSError, EOFError):
            return
        reply.whole = True

    async def _within(self, reading: Any) -> bytes:
        data: bytes = await asyncio.wait_for(reading, LIMIT)
        return data


def request(method: str, path: str, body: Any = None, **headers: str) -> bytes:
    """The bytes of a request; ``body`` is JSON, or bytes as they are."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    fields = {"host": "127.0.0.1", "content-length": str(len(data)), "connection": "close"}
    if data:
        fields["content-type"] = "application/json"
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data


async def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    """One whole exchange."""
    async with Wire(port) as wire:
        await wire.send(request(method, path, body, **headers))
        return await wire.read(await wire.reply())
