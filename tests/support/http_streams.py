"""Answers of a server as they come: event by event, or cut off."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from support.lifecycle import LIMIT, LONG, QUESTION

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
"""A body for ``CHAT``."""
ENDLESS: dict[str, Any] = {"max_tokens": 900, "temperature": 0.0, "debug_config": {"ignore_eos": True}}
"""Fields of a body whose answer takes seconds on a slowed engine; needs ``enable_debug``."""


def body_of(path: str, text: str = LONG, **fields: Any) -> dict[str, Any]:
    """A body for either route."""
    question = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    return {**question, **fields}


class Exchange:
    """One request that has been sent, on a connection of its own, and its response as it comes."""

    def __init__(
        self,
        port: int,
        body: Any = None,
        path: str = CHAT,
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        limit: float = LIMIT,
    ) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit)
        data = None if body is None else json.dumps(body).encode()
        self.connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        assert self.connection.sock is not None
        self.socket: socket.socket = self.connection.sock
        self._response: http.client.HTTPResponse | None = None

    @property
    def response(self) -> http.client.HTTPResponse:
        """The response, once its head is there."""
        if self._response is None:
            self._response = self.connection.getresponse()
        return self._response

    def events(self) -> Iterator[Any]:
        """The data of the events as they come, parsed; ``[DONE]`` as it is. Raises when the stream is cut off."""
        while line := self.response.readline():
            if line.startswith(b"data: "):
                data = line[6:].strip()
                yield data.decode() if data == b"[DONE]" else json.loads(data)

    def next_event(self) -> Any:
        return next(self.events())

    def rest(self) -> list[Any]:
        """All events that are left, up to a proper end of the body."""
        events = list(self.events())
        assert self.response.isclosed() or self.response.read() == b""
        return events

    def json(self) -> Any:
        return json.loads(self.response.read())

    def leave(self) -> None:
        """Close the connection in the middle of whatever it does."""
        self.socket.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
        self.connection.close()


def endings(events: list[Any]) -> list[str]:
    """How a stream of one choice ended: all its endings, in order; a good stream, or a bad one, has exactly one."""
    found = []
    for event in events:
        if event == "[DONE]":
            found.append("done")
        elif "error" in event:
            found.append(str(event["error"]["code"]))
    return found
