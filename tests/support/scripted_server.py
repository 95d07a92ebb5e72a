"""A server that serves the page and answers its requests as a test says: slowly, in odd pieces, or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from support.lifecycle import LIMIT
from windlass.server.routes.page import CONTENT_SECURITY_POLICY, FILES, PATHS

METRICS = """\
# TYPE windlass_num_requests_running gauge
windlass_num_requests_running{model_name="a"} 2
windlass_num_requests_running{model_name="b"} 1
# TYPE windlass_num_requests_running_max gauge
windlass_num_requests_running_max 9
# TYPE windlass_num_requests_waiting gauge
windlass_num_requests_waiting 4
"""


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chat chunk with ``fields`` as its delta."""
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "model": "scripted", "choices": [choice]}


class Exchange:
    """One chat request, and the means to answer it."""

    def __init__(self, handler: _Handler, body: dict[str, Any]) -> None:
        self.body = body
        self._handler = handler
        self._streaming = False

    def refuse(self, status: int, message: str, **headers: str) -> None:
        """Answer with OpenAI's error body."""
        self._handler.answer_json(status, {"error": {"message": message}}, headers)

    def stream(self, *pieces: dict[str, Any] | str | bytes) -> None:
        """Send events, or bytes as they are, each piece on its own."""
        if not self._streaming:
            self._streaming = True
            self._handler.send_response(200)
            self._handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self._handler.end_headers()
        for piece in pieces:
            text = piece if isinstance(piece, str) else json.dumps(piece) if isinstance(piece, dict) else ""
            self._handler.wfile.write(piece if isinstance(piece, bytes) else f"data: {text}\n\n".encode())
            self._handler.wfile.flush()

    def finish(self, tokens: int | None = None) -> None:
        """End the stream as it should end."""
        usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + (tokens or 0)}
        self.stream(delta("stop"), *([{"choices": [], "usage": usage}] if tokens else []), "[DONE]")

    def say(self, *texts: str, **fields: Any) -> None:
        """A whole answer, one event for each text."""
        self.stream(*(delta(content=text, **fields) for text in texts))
        self.finish(max(2, len(texts)))


Script = Callable[[Exchange], None]


class ScriptedServer(ThreadingHTTPServer):
    """The server. A test sets what it answers; ``asked`` has the bodies of the chat requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: Script = lambda exchange: exchange.say("Hello.")
        self.asked: list[dict[str, Any]] = []
        self.state = "ready"
        self.key: str | None = None
        self.metrics: str | None = METRICS
        self.models = ["scripted", "another"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle is no error here."""


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name in the base class)
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path in PATHS:
            name = PATHS[self.path]
            content = (files("windlass.server") / "page" / name).read_bytes()
            self._answer(200, content, FILES[name], {"Content-Security-Policy": CONTENT_SECURITY_POLICY})
        elif self.path == "/readyz":
            ready = self.server.state == "ready"
            self.answer_json(200 if ready else 503, {"state": self.server.state}, {})
        elif self._has_key():
            self._get_guarded()

    def _get_guarded(self) -> None:
        if self.path == "/v1/models":
            self.answer_json(200, {"data": [{"id": name} for name in self.server.models]}, {})
        elif self.path == "/metrics" and self.server.metrics is not None:
            self._answer(200, self.server.metrics.encode(), "text/plain", {})
        else:
            self.answer_json(404, {"error": {"message": "there is no such route"}}, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._has_key():
            self.server.asked.append(body)
            self.server.script(Exchange(self, body))

    def _has_key(self) -> bool:
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self.answer_json(401, {"error": {"message": "a valid key, please"}}, {})
        return False

    def answer_json(self, status: int, value: Any, headers: dict[str, str]) -> None:
        self._answer(status, json.dumps(value).encode(), "application/json", headers)

    def _answer(self, status: int, content: bytes, media_type: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": media_type, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """A server on a free port; threads that still answer are left to their script's end."""
    server = ScriptedServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(LIMIT)
        server.server_close()
