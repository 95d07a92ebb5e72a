"""curl, as people type it."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from support.lifecycle import ANSWER, QUESTION
from support.server import KEY, RunningServer

pytestmark = pytest.mark.clients
BODY = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
LIMIT = 20


def curl(*words: str, data: str | None = None) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", *words]
    return subprocess.run(command, input=data, capture_output=True, text=True, timeout=LIMIT, check=True).stdout


def post(server: RunningServer, path: str, body: object, *words: str) -> str:
    headers = ["-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {KEY}"]
    return curl(*words, f"{server.url}{path}", *headers, "--data-binary", "@-", data=json.dumps(body))


def test_a_whole_answer(server: RunningServer) -> None:
    answer = json.loads(post(server, "/v1/chat/completions", BODY))
    assert answer["choices"][0]["message"]["content"] == ANSWER


def test_a_stream(server: RunningServer) -> None:
    text = post(server, "/v1/chat/completions", {**BODY, "stream": True}, "-N")
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == ANSWER


def test_headers_of_an_answer(server: RunningServer) -> None:
    head, _, body = post(server, "/v1/chat/completions", BODY, "-i").partition("\n\n")
    assert head.startswith("HTTP/1.1 200 OK")
    assert "content-type: application/json" in head.lower()
    assert json.loads(body)["object"] == "chat.completion"


def test_a_route_that_is_not_there(server: RunningServer) -> None:
    text = post(server, "/v1/nothing", BODY, "-w", "\n%{http_code}")
    body, status = text.rsplit("\n", 1)
    assert status == "404"
    assert json.loads(body)["error"]["code"] == "not_found"


def test_a_method_that_is_not_taken(server: RunningServer) -> None:
    text = curl("-X", "DELETE", "-w", "\n%{http_code}", "-H", f"x-api-key: {KEY}", f"{server.url}/v1/models")
    body, status = text.rsplit("\n", 1)
    assert status == "405"
    assert json.loads(body)["error"]["code"] == "method_not_allowed"


def test_a_large_body_is_announced_first(server: RunningServer) -> None:
    """Beyond a megabyte curl sends ``Expect: 100-continue``, and waits."""
    body = {**BODY, "messages": [{"role": "user", "content": "x" * (1 << 21)}]}
    text = post(server, "/v1/chat/completions", body, "-w", "\n%{http_code} %{time_total}")
    answer, figures = text.rsplit("\n", 1)
    status, seconds = figures.split()
    assert status == "400"
    assert json.loads(answer)["error"]["code"] == "context_length_exceeded"
    assert float(seconds) < 10


def test_the_head_alone(server: RunningServer) -> None:
    assert curl("-I", f"{server.url}/readyz").startswith(("HTTP/1.1 200", "HTTP/1.1 405"))
