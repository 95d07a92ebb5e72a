"""A lean HTTP/1.1 client for streams of server-sent events, on asyncio's protocols.

Not a library, because the client shares the machine with the server it measures: what it spends per token, the server
lacks. Here a token costs one callback, which notes the time and the bytes; no task wakes up, nothing is decoded, and
the JSON is read when the measurement is over. It understands what servers of this kind send: one answer at a time on a
connection, with a length, in chunks (RFC 9112, section 7.1), or up to the connection's end.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

_LONGEST_HEAD = 65536


class ProtocolError(Exception):
    """The server did not speak HTTP/1.1 as this client knows it."""


@dataclass
class Answer:
    """What came back.

    Attributes:
        events: (when, data) of each server-sent event; the time is ``time.perf_counter()``'s.
        body: of an answer that is no stream of events.
        whole: the answer ended where HTTP says that it ends, and was not cut.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    events: list[tuple[float, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False


class Connection(asyncio.Protocol):
    """One connection, which carries one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._prepare()

    def _prepare(self) -> None:
        self._answer = Answer()
        self._buffer = bytearray()
        self._step = self._read_head
        self._left = 0
        self._chunked = False
        self._closes = False
        self._is_stream = False
        self._line = b""
        self._data: list[bytes] = []

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> Answer:
        """Send the request and wait for the end of its answer; a cut answer is returned as it came.

        Raises:
            ProtocolError: the answer cannot be read.
        """
        if self._transport is None or not self.is_open:
            return Answer()
        self._prepare()
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._waiter
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave at once, also in the middle of an answer."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while self._step():
                pass
        except (ProtocolError, ValueError) as error:
            self._finish(error if isinstance(error, ProtocolError) else ProtocolError(str(error)))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if error is None and self._step == self._read_to_end:
            self._answer.whole = True
        self._finish()

    def _finish(self, error: Exception | None = None) -> None:
        waiter, self._waiter = self._waiter, None
        if self._closes and self._transport is not None:
            self._transport.close()
        if waiter is None or waiter.done():
            return
        if error is not None:
            waiter.set_exception(error)
        else:
            waiter.set_result(self._answer)

    # Reading: each step takes its part off the buffer, and returns whether there may be more to do.

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _LONGEST_HEAD:
                raise ProtocolError("the answer's head does not end")
            return False
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1."):
            raise ProtocolError(f"the answer begins with {first[:60]!r}")
        answer = self._answer
        answer.status = int(rest[:3])
        if answer.status < 200:
            return True  # 100 Continue and its like come before the answer
        for line in lines:
            name, _, value = line.partition(":")
            answer.headers[name.strip().lower()] = value.strip()
        self._chunked = "chunked" in answer.headers.get("transfer-encoding", "").lower()
        self._closes = "close" in answer.headers.get("connection", "").lower()
        self._is_stream = answer.headers.get("content-type", "").startswith("text/event-stream")
        length = answer.headers.get("content-length")
        if self._chunked:
            self._step = self._read_size
        elif length is not None:
            self._left = int(length)
            self._step = self._read_part
        else:
            self._closes = True
            self._step = self._read_to_end
        return True

    def _read_size(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        self._left = int(self._buffer[:end].partition(b";")[0], 16)
        del self._buffer[: end + 2]
        self._step = self._read_part if self._left else self._read_trailers
        return True

    def _read_part(self) -> bool:
        part = bytes(self._buffer[: self._left])
        del self._buffer[: self._left]
        self._left -= len(part)
        self._take(part)
        if self._left:
            return False
        if self._chunked:
            self._step = self._read_mark
            return True
        return self._end()

    def _read_mark(self) -> bool:
        if len(self._buffer) < 2:
            return False
        if self._buffer[:2] != b"\r\n":
            raise ProtocolError("a chunk is longer than it says")
        del self._buffer[:2]
        self._step = self._read_size
        return True

    def _read_trailers(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        del self._buffer[: end + 2]
        return self._end() if end == 0 else True

    def _read_to_end(self) -> bool:
        part = bytes(self._buffer)
        self._buffer.clear()
        self._take(part)
        return False

    def _end(self) -> bool:
        self._answer.whole = True
        self._finish()
        return False

    def _take(self, part: bytes) -> None:
        if not self._is_stream:
            self._answer.body += part
            return
        now = time.perf_counter()
        *lines, self._line = (self._line + part).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                self._answer.events.append((now, b"\n".join(self._data)))
                self._data = []


class Client:
    """Connections to one server, kept open and used again."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        """``base_url`` as OpenAI's clients take it: ``http://host:port/v1``.

        Raises:
            ValueError: it is no address of that form.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} is not an address such as http://127.0.0.1:8000/v1")
        self._tls = parts.scheme == "https"
        self._address = (parts.hostname, parts.port or (443 if self._tls else 80))
        self._path = parts.path.rstrip("/")
        fields = [f"Host: {parts.netloc}", "Content-Type: application/json", "Accept: text/event-stream"]
        if api_key:
            fields.append(f"Authorization: Bearer {api_key}")
        self._fields = "\r\n".join(fields)
        self._idle: list[Connection] = []

    async def post(self, path: str, body: bytes) -> Answer:
        """Post JSON to ``path`` below the base URL; the answer may be cut (``Answer.whole``).

        Raises:
            OSError: no connection.
            ProtocolError: the answer cannot be read.
        """
        head = f"POST {self._path}{path} HTTP/1.1\r\n{self._fields}\r\nContent-Length: {len(body)}\r\n\r\n"
        request = head.encode("latin-1") + body
        while self._idle:
            connection = self._idle.pop()
            answer = await connection.ask(request)
            if answer.status:
                return self._keep(connection, answer)
            # The server has closed the connection while nobody used it; the request was not seen.
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, *self._address, ssl=self._tls or None)
        return self._keep(connection, await connection.ask(request))

    def _keep(self, connection: Connection, answer: Answer) -> Answer:
        if connection.is_open and answer.whole:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    async def close(self) -> None:
        """Close every connection."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # the transports close themselves in the loop's next round
