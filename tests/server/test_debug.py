"""The routes of --enable-debug."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from support.lifecycle import QUESTION
from support.server import DEMO, serving, until

ROUTES = ("dump_event_trace", "dump_engine_metrics", "reset_engine")


def test_they_are_not_there_without_the_flag() -> None:
    with serving() as server:
        for name in (*ROUTES, "cuda_profiler_start"):
            refused = server.request("POST", f"/debug/{name}", {})
            assert (refused.status, refused.json["error"]["code"]) == (404, "not_found")
        refused = server.chat(QUESTION, debug_config={"ignore_eos": True})
        assert (refused.status, refused.json["error"]["code"]) == (400, "debug_disabled")


def test_trace_metrics_and_reset() -> None:
    with serving(replace(DEMO, enable_tracing=True), enable_debug=True) as server:
        body = {"model": "windlass-demo"}
        assert server.chat(QUESTION, max_tokens=4, debug_config={"ignore_eos": True}).status == 200
        trace = server.request("POST", "/debug/dump_event_trace", body)
        assert trace.status == 200
        assert {event["name"] for event in trace.json["traceEvents"]} >= {"thread_name", "prefill"}
        metrics = server.request("POST", "/debug/dump_engine_metrics", {}).json
        assert (metrics["state"], metrics["completion_tokens_sum"]) == ("ready", 4)
        assert sum(metrics["e2e_request_latency_seconds"]["counts"]) == 1

        answers = []
        endless = {"max_tokens": 900, "debug_config": {"ignore_eos": True}}
        thread = threading.Thread(target=lambda: answers.append(server.chat(QUESTION, **endless)))
        thread.start()
        until(lambda: server.engine._metrics().num_requests_running == 1)
        assert server.request("POST", "/debug/reset_engine", body).json == {}
        thread.join(20)
        assert [(answer.status, answer.json["error"]["code"]) for answer in answers] == [(503, "request_cancelled")]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "tracing_disabled"),
        ({"model": "gpt-9"}, 404, "model_not_found"),
        ({"path": "/etc/passwd"}, 400, "unknown_parameter"),
    ],
)
def test_they_refuse_by_name(body: dict[str, str], status: int, code: str) -> None:
    with serving(enable_debug=True) as server:
        refused = server.request("POST", "/debug/dump_event_trace", body)
        assert (refused.status, refused.json["error"]["code"]) == (status, code)
