"""One line per request in the log of a server, with nothing of what was said."""

from __future__ import annotations

import json
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from support.lifecycle import ANSWER, QUESTION, wait_for
from support.server import DEMO, RunningServer, server_process, serving

KEY = "sk-very-secret"


class Lines(logging.Handler):
    """Collects what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def request(self, request_id: str) -> dict[str, Any]:
        """The line of a request, which is logged after its response has been read."""

        def found() -> list[logging.LogRecord]:
            return [one for one in list(self.records) if getattr(one, "fields", {}).get("request_id") == request_id]

        assert wait_for(lambda: bool(found()))
        [record] = found()
        assert record.getMessage() == "request"
        fields: dict[str, Any] = record.fields  # type: ignore[attr-defined]
        return {**fields, "level": record.levelname}


@pytest.fixture(scope="module")
def lines() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("windlass.server")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def server(lines: Lines) -> Iterator[RunningServer]:  # noqa: ARG001
    with serving(enable_debug=True) as running:
        yield running


def ask(server: RunningServer, name: str, path: str = "/v1/chat/completions", **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, **fields}
    return server.request("POST", path, body, {"X-Request-Id": name})


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer(server: RunningServer, lines: Lines, stream: bool) -> None:
    answer = ask(server, f"answer-{stream}", stream=stream, max_tokens=3, n=2)
    line = lines.request(f"answer-{stream}")
    usage = ask(server, "other", max_tokens=3, n=2).json["usage"]
    expected = {
        "level": "INFO",
        "request_id": f"answer-{stream}",
        "client": "127.0.0.1",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "model": DEMO.name,
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": 6,
        "finish_reason": "length",
    }
    assert {name: line[name] for name in expected} == expected
    assert line.get("stream") is (True if stream else None)
    assert 0 < line["duration"] < 20
    first = answer.events[0] if stream else answer.json
    assert line["response_id"] == first["id"]
    assert "error" not in line
    assert "client_gone" not in line


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_other_routes(server: RunningServer, lines: Lines, path: str, stream: bool) -> None:
    bodies: dict[str, Any] = {
        "/v1/responses": {"input": QUESTION, "max_output_tokens": 16},
        "/v1/messages": {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16},
        "/v1/completions": {"prompt": QUESTION, "max_tokens": 16},
    }
    name = f"{path}-{stream}"
    answer = server.request("POST", path, {**bodies[path], "stream": stream}, {"X-Request-Id": name})
    assert answer.status == 200
    line = lines.request(name)
    assert (line["route"], line["model"], line["status"]) == (path, DEMO.name, 200)
    assert line["prompt_tokens"] > 0
    assert line["completion_tokens"] > 0
    assert line["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize(
    ("path", "fields", "status", "route", "error"),
    [
        ("/v1/chat/completions", {"model": "gpt-9"}, 404, "/v1/chat/completions", "model_not_found"),
        ("/v1/chat/completions", {"temperature": 9}, 400, "/v1/chat/completions", "invalid_value"),
        ("/nowhere/at/all", {}, 404, "other", "not_found"),
        ("/livez", {}, 405, "/livez", "method_not_allowed"),
    ],
)
def test_an_error(
    server: RunningServer, lines: Lines, path: str, fields: dict[str, Any], status: int, route: str, error: str
) -> None:
    ask(server, f"error-{error}", path, **fields)
    line = lines.request(f"error-{error}")
    assert (line["status"], line["route"], line["error"]) == (status, route, error)
    assert line.get("path") == (path if route == "other" else None)


def test_probes_and_metrics_are_details(server: RunningServer, lines: Lines) -> None:
    for path in ("/livez", "/readyz", "/health", "/metrics"):
        server.request("GET", path, headers={"X-Request-Id": f"probe{path}"})
        assert lines.request(f"probe{path}")["level"] == "DEBUG"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(server: RunningServer, lines: Lines, stream: bool) -> None:
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 900,
        "stream": stream,
        "debug_config": {"ignore_eos": True},
    }
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: gone-{stream}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(head.encode() + data)
        if stream:
            received = b""
            while received.count(b"data:") < 2:
                part = connection.recv(100)
                assert part, received
                received += part
            assert received.startswith(b"HTTP/1.1 200")
        else:
            assert wait_for(lambda: server.engine._metrics().num_requests_running == 1)
    line = lines.request(f"gone-{stream}")
    assert (line["status"], line["client_gone"]) == (200 if stream else 499, True)
    assert line.get("stream") is (True if stream else None)
    assert "finish_reason" not in line
    if stream:
        assert 0 < line["completion_tokens"] < 900


def test_a_stream_that_breaks_off(server: RunningServer, lines: Lines) -> None:
    answer = ask(server, "broken", stream=True, max_tokens=900, timeout=0.05, debug_config={"ignore_eos": True})
    assert answer.events[-1]["error"]["code"] == "timeout"
    line = lines.request("broken")
    assert (line["status"], line["error"]) == (200, "timeout")


def test_the_log_of_a_process_is_json_without_secrets() -> None:
    environment = {"WINDLASS_SERVE_API_KEY": KEY, "WINDLASS_SERVE_LOG_FORMAT": "json"}
    with server_process("--log-level", "info", env=environment) as server:
        found = server.wait_for_line(r'"url": "http://127\.0\.0\.1:(\d+)"')
        server.wait_for_line('"event": "ready"')
        port = int(found.group(1))
        body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "mine"}
        answer = server.request("POST", "/v1/chat/completions", body, headers)
        assert answer.json["choices"][0]["message"]["content"] == ANSWER
        wrong = {"messages": QUESTION, QUESTION: 1}
        assert server.request("POST", "/v1/chat/completions", wrong, headers).status == 400
        assert server.request("GET", "/v1/models", headers={"Authorization": "Bearer sk-wrong"}).status == 401
        assert server.request("GET", "/livez").status == 200
        # Not HTTP at all.
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(b"hello\r\n\r\n")
            connection.recv(1000)
        server.send(signal.SIGTERM)
        assert server.wait() == 0
    events = [json.loads(line) for line in server.lines]
    assert [event["event"] for event in events[:2]] == ["listening", "ready"]
    assert [(event["status"], event["route"]) for event in events if event["event"] == "request"] == [
        (200, "/v1/chat/completions"),
        (400, "/v1/chat/completions"),
        (401, "/v1/models"),
    ]
    assert all({"time", "level", "event"} <= event.keys() for event in events)
    text = "\n".join(server.lines)
    for secret in (QUESTION, ANSWER.strip(), KEY, "sk-wrong"):
        assert secret not in text
