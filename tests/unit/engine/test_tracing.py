from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.fakes import make_request
from windlass.engine.recorder import AbortCause, MetricsRecorder
from windlass.engine.request import FinishReason
from windlass.engine.scheduler import Chunk
from windlass.engine.tracing import TraceRecorder


def events(trace: TraceRecorder) -> list[dict[str, Any]]:
    document = json.loads(trace.json())
    assert document["displayTimeUnit"] == "ms"
    metadata, rest = document["traceEvents"][:2], document["traceEvents"][2:]
    assert [event["args"]["name"] for event in metadata] == ["windlass", "steps"]
    assert all(event["ph"] in "XbenC" and event["pid"] == 1 and "ts" in event for event in rest)
    return rest  # type: ignore[no-any-return]


def test_a_request_and_its_steps() -> None:
    trace = TraceRecorder()
    recorder = MetricsRecorder(clock=lambda: 9.0, trace=trace)
    request, _ = make_request('a"b', prompt=4)
    recorder.accepted(request, 1.0)
    recorder.step([Chunk(request, 4)], 2.0, 3.5)
    request.token_ids.append(5)
    recorder.token(request, stop=False)
    recorder.step_cancelled(4.0, 4.5)
    recorder.preempted(request)
    recorder.finished(request, FinishReason.LENGTH)
    found = [event for event in events(trace) if event["ph"] != "C"]
    assert [(event["ph"], event["name"], event["ts"]) for event in found] == [
        ("b", "request", 1e6),
        ("b", "queued", 1e6),
        ("e", "queued", 2e6),
        ("b", "prefill", 2e6),
        ("X", "step", 2e6),
        ("e", "prefill", 3.5e6),
        ("b", "decode", 3.5e6),
        ("X", "cancelled step", 4e6),
        ("n", "preempted", 9e6),
        ("e", "decode", 9e6),
        ("e", "request", 9e6),
    ]
    assert found[0]["args"] == {"request_id": 'a"b', "choice": 0, "prompt_tokens": 4}
    assert found[-1]["args"] == {"outcome": "length", "completion_tokens": 1}
    assert found[4]["args"] == {"prefill_tokens": 4, "decode_tokens": 0, "draft_tokens": 0}
    assert found[4]["dur"] == 1.5e6
    assert {event["id"] for event in found if event["ph"] in "ben"} == {"0x1"}


def test_every_slice_that_begins_ends_inside_its_parent() -> None:
    trace = TraceRecorder()
    recorder = MetricsRecorder(clock=lambda: 9.0, trace=trace)
    requests = [make_request(name, prompt=4)[0] for name in "abc"]
    for request in requests:
        recorder.accepted(request, 1.0)
    recorder.step([Chunk(requests[1], 4), Chunk(requests[2], 4)], 2.0, 3.0)
    recorder.token(requests[2], stop=True)
    recorder.finished(requests[2], FinishReason.STOP)
    recorder.aborted_all(AbortCause.TERMINATION)
    open_slices: dict[str, list[str]] = {}
    for event in events(trace):
        if event["ph"] == "b":
            open_slices.setdefault(event["id"], []).append(event["name"])
        elif event["ph"] == "e":
            assert open_slices[event["id"]].pop() == event["name"]
    assert open_slices == {"0x1": [], "0x2": [], "0x3": []}


def test_counters_are_recorded_when_they_change() -> None:
    trace = TraceRecorder()
    recorder = MetricsRecorder(clock=lambda: 1.0, trace=trace)
    before = len(events(trace))
    recorder.publish(None)
    recorder.publish(None)
    assert len(events(trace)) == before
    assert {event["name"] for event in events(trace) if event["ph"] == "C"} == {"requests", "pages"}


def test_events_are_in_order_of_time() -> None:
    trace = TraceRecorder()
    trace.step("step", 2.0, 3.0)
    trace.begin(1, "request", 1.0)
    assert [event["name"] for event in events(trace)] == ["request", "step"]


def test_the_oldest_events_go_first() -> None:
    trace = TraceRecorder(capacity=10)
    for number in range(25):
        trace.step("step", float(number), number + 0.5)
    assert [event["ts"] for event in events(trace)] == [number * 1e6 for number in range(15, 25)]


def test_dump_writes_a_file(tmp_path: Path) -> None:
    trace = TraceRecorder()
    trace.step("step", 1.0, 2.0, note="ж")
    trace.dump(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text(encoding="utf-8")) == json.loads(trace.json())
    with pytest.raises(OSError, match="nowhere"):
        trace.dump(tmp_path / "nowhere" / "trace.json")
