"""What Prometheus reads, in every state; and the id and the timing that each response carries."""

from __future__ import annotations

import socket
import threading
from typing import Any

import anyio.to_thread
import pytest

from support.lifecycle import QUESTION
from support.prometheus import Family, read_exposition
from support.server import DEMO, RunningServer, serving, until
from windlass import AsyncMLCEngine, EngineConfig
from windlass.engine.exposition import CONTENT_TYPE
from windlass.engine.state import EngineState
from windlass.server.served import ModelSpec
from windlass.server.settings import ServerSettings

TWO = (ModelSpec("one", EngineConfig(num_threads=1)), ModelSpec("two", EngineConfig(num_threads=1)))


def scrape(server: RunningServer) -> dict[str, Family]:
    answer = server.request("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == CONTENT_TYPE
    return read_exposition(answer.body.decode())


def value(families: dict[str, Family], name: str, **labels: str) -> float:
    found = [
        family.samples[key]
        for family in families.values()
        for key in [(name, tuple(sorted(labels.items())))]
        if key in family.samples
    ]
    assert len(found) == 1, (name, labels)
    return found[0]


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_all_families_with_the_models_apart() -> None:
    with serving(*TWO) as server:
        assert server.chat(QUESTION, model="two", max_tokens=3).status == 200
        assert server.chat(QUESTION, model="two", max_tokens=3, stream=True).status == 200
        assert server.chat(QUESTION, temperature=9).status == 400
        assert server.request("GET", "/some/where").status == 404
        assert server.request("BREW", "/some/pot").status == 404
        assert server.request("GET", "/v1/models/one").status == 200
        families = scrape(server)
    tokens = {name: value(families, "windlass_generation_tokens_total", model_name=name) for name in ("one", "two")}
    assert tokens == {"one": 0, "two": 6}
    assert value(families, "windlass_engine_state", model_name="one", state="ready") == 1
    assert value(families, "windlass_time_to_first_token_seconds_count", model_name="two") == 2

    def requests(route: str, method: str, status: int) -> float:
        return value(families, "http_requests_total", route=route, method=method, status=str(status))

    assert requests("/v1/chat/completions", "POST", 200) == 2
    assert requests("/v1/chat/completions", "POST", 400) == 1
    assert requests("/v1/models/{name}", "GET", 200) == 1
    assert requests("other", "GET", 404) == 1
    assert requests("other", "other", 404) == 1
    duration = value(families, "http_request_duration_seconds_count", route="/v1/chat/completions", method="POST")
    assert duration == 3
    assert value(families, "http_requests_in_progress") == 1  # the scrape itself
    assert value(families, "http_streams_open") == 0
    for name in ("resident_memory_bytes", "virtual_memory_bytes", "open_fds", "threads", "cpu_seconds_total"):
        assert value(families, f"process_{name}") > 0
    assert value(families, "process_start_time_seconds") > 1e9


def test_they_are_there_while_loading_and_draining(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    load = AsyncMLCEngine.load

    async def slow(*arguments: Any, **named: Any) -> AsyncMLCEngine:
        await anyio.to_thread.run_sync(go_on.wait, 20)
        return await load(*arguments, **named)

    monkeypatch.setattr(AsyncMLCEngine, "load", slow)
    server = RunningServer([DEMO], ServerSettings(port=0, enable_debug=True))
    try:
        until(lambda: is_open(server.port))
        families = scrape(server)
        assert value(families, "windlass_engine_state", model_name=DEMO.name, state="loading") == 1
        assert "windlass_prompt_tokens_total" not in families
        go_on.set()
        server.wait_until_ready()

        endless = {"stream": True, "max_tokens": 900, "debug_config": {"ignore_eos": True}}
        thread = threading.Thread(target=server.chat, args=(QUESTION,), kwargs=endless)
        thread.start()
        until(lambda: value(scrape(server), "http_streams_open") == 1)
        server.stop()
        until(lambda: server.server.served.state is not EngineState.READY)
        families = scrape(server)
        assert value(families, "windlass_engine_state", model_name=DEMO.name, state="ready") == 0
    finally:
        go_on.set()
        server.stop()
        server.stop()
        server.join()
    thread.join(10)


def test_a_key_is_needed_unless_metrics_are_open() -> None:
    with serving(api_keys=("sk-1",)) as server:
        assert server.request("GET", "/metrics").status == 401
        assert server.request("GET", "/metrics", headers={"Authorization": "Bearer sk-1"}).status == 200
        # Who has no key still counts.
        text = server.request("GET", "/metrics", headers={"x-api-key": "sk-1"}).body.decode()
        assert 'http_requests_total{route="/metrics",method="GET",status="401"} 1' in text
    with serving(api_keys=("sk-1",), open_metrics=True) as server:
        assert server.request("GET", "/metrics").status == 200
        assert server.request("GET", "/v1/models").status == 401


@pytest.mark.parametrize(
    ("given", "kept"),
    [("my-id:42/a=b", True), ("x" * 128, True), ("x" * 129, False), ("two words", False), ("é", False), ("", False)],
)
def test_the_clients_id_comes_back(demo: RunningServer, given: str, kept: bool) -> None:
    for path in ("/v1/models", "/nowhere"):
        headers = demo.request("GET", path, headers={"X-Request-Id": given.encode("latin-1").decode("latin-1")}).headers
        assert (headers["x-request-id"] == given) is kept
        assert kept or headers["x-request-id"].startswith("req_")
        assert int(headers["openai-processing-ms"]) >= 0


@pytest.fixture(scope="module")
def demo() -> Any:
    with serving() as running:
        yield running
