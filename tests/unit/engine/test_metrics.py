"""What is recorded, what readers see of it, and how it reads in Prometheus' format."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.fakes import make_request
from support.prometheus import read_exposition
from windlass.engine.exposition import Exposition
from windlass.engine.metrics import PREFIX, EngineMetrics, add_state
from windlass.engine.pages import PagePool
from windlass.engine.recorder import AbortCause, MetricsRecorder
from windlass.engine.request import FinishReason, Request
from windlass.engine.scheduler import Scheduler
from windlass.engine.state import EngineState
from windlass.engine.tracing import TraceRecorder


class PreemptingScheduler(Scheduler):
    """Tells the recorder of preemptions."""

    recorder: MetricsRecorder

    def _preempt(self, request: Request) -> None:
        super()._preempt(request)
        self.recorder.preempted(request)


@dataclass
class Loop:
    """An engine loop without an engine: every step takes ``seconds``, and the recorder is told of all of it."""

    pages: int = 100
    tokens: int = 32
    seconds: float = 0.5
    trace: TraceRecorder | None = None
    time: float = 100.0
    stop_at: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = PreemptingScheduler(PagePool(self.pages), max_num_sequence=4, max_tokens=self.tokens)
        self.recorder = self.scheduler.recorder = MetricsRecorder(clock=lambda: self.time, trace=self.trace)

    def add(self, name: str, prompt: int, max_tokens: int = 4, start: int = 0, waited: float = 0.0) -> Request:
        request, _ = make_request(name, prompt=prompt, start=start, max_tokens=max_tokens)
        self.recorder.accepted(request, self.time - waited)
        self.scheduler.add(request)
        return request

    def step(self) -> None:
        chunks = self.scheduler.schedule(1000)
        started = self.time
        self.time += self.seconds
        self.recorder.step(chunks, started, self.time)
        for chunk in chunks:
            completes = chunk.completes
            self.scheduler.advance(chunk.request, chunk.num_tokens)
            if completes:
                self._draw(chunk.request)
        self.recorder.publish(self.scheduler)

    def _draw(self, request: Request) -> None:
        request.token_ids.append(0)
        stop = self.stop_at.get(request.request_id) == request.num_generated
        self.recorder.token(request, stop=stop)
        if stop or request.num_generated >= request.max_tokens:
            self.scheduler.remove(request)
            self.recorder.finished(request, FinishReason.STOP if stop else FinishReason.LENGTH)

    def run(self) -> None:
        while self.scheduler.has_work:
            self.step()

    def metrics(self) -> EngineMetrics:
        return self.recorder.snapshot(EngineState.READY)


def test_a_new_engine_has_counted_nothing() -> None:
    metrics = MetricsRecorder().snapshot(EngineState.LOADING)
    assert metrics.state is EngineState.LOADING
    assert metrics.num_steps == metrics.num_pages == 0
    assert metrics.prefill_tokens_per_s == metrics.decode_tokens_per_s == 0.0
    assert metrics.last_finished_request == {}
    assert metrics.requests_finished == {"stop": 0, "length": 0}
    assert set(metrics.requests_aborted.values()) == {0}
    read_exposition(metrics.prometheus_text())


def test_the_life_of_one_request() -> None:
    loop = Loop()
    loop.add("a", prompt=40, max_tokens=4, waited=0.25)
    loop.run()  # 32 and 8 tokens of prefill, then 3 of decoding
    metrics = loop.metrics()
    assert metrics.num_steps == 5
    assert (metrics.prompt_tokens_sum, metrics.prefill_tokens_sum) == (40, 40)
    assert (metrics.completion_tokens_sum, metrics.decode_tokens_sum) == (4, 3)
    assert (metrics.engine_prefill_time_sum, metrics.engine_decode_time_sum) == (1.0, 1.5)
    assert (metrics.prefill_tokens_per_s, metrics.decode_tokens_per_s) == (40.0, 2.0)
    assert metrics.requests_finished == {"stop": 0, "length": 1}
    assert metrics.decode_steps_by_batch_size == {1: (3, 1.5)}
    assert metrics.last_finished_request == {
        "prompt_tokens": 40,
        "completion_tokens": 4,
        "prefill_tokens": 40,
        "decode_tokens": 3,
        "prefill_tokens_per_s": 40.0,
        "decode_tokens_per_s": 2.0,
        "end_to_end_latency_s": 2.75,
        "ttft_s": 1.25,
        "inter_token_latency_s": 0.5,
    }
    means = {name: value.mean for name, value in metrics.items() if name.endswith("_seconds")}
    assert means == {
        "time_to_first_token_seconds": 1.25,
        "inter_token_latency_seconds": 0.5,
        "e2e_request_latency_seconds": 2.75,
        "request_queue_time_seconds": 0.25,
        "request_prefill_time_seconds": 1.0,
        "request_decode_time_seconds": 1.5,
    }
    assert metrics.inter_token_latency_seconds.count == 3
    assert (metrics.request_prompt_tokens.total, metrics.request_generation_tokens.total) == (40, 4)


def test_a_stop_token_is_not_part_of_the_answer() -> None:
    loop = Loop(stop_at={"a": 3, "b": 1})
    loop.add("a", prompt=4, max_tokens=9)
    loop.run()
    assert loop.metrics().completion_tokens_sum == 2
    assert loop.metrics().inter_token_latency_seconds.count == 1
    loop.add("b", prompt=4, start=20)
    loop.run()
    metrics = loop.metrics()
    assert metrics.requests_finished == {"stop": 2, "length": 0}
    assert metrics.completion_tokens_sum == 2
    assert metrics.prompt_tokens_sum == 8
    assert metrics.last_finished_request["completion_tokens"] == 0
    assert metrics.last_finished_request["ttft_s"] == 0.5


def test_the_time_of_a_mixed_step_is_split_by_tokens() -> None:
    loop = Loop(seconds=1.0)
    loop.add("a", prompt=4, max_tokens=3)
    loop.step()
    loop.add("b", prompt=3, start=20, max_tokens=2)
    loop.step()
    metrics = loop.metrics()
    assert (metrics.engine_prefill_time_sum, metrics.engine_decode_time_sum) == (1.75, 0.25)
    assert metrics.decode_steps_by_batch_size == {}
    loop.step()
    assert loop.metrics().decode_steps_by_batch_size == {2: (1, 1.0)}
    assert loop.metrics().decode_time_by_batch_size == {"mean": {"batch_size=2": 1.0}, "count": {"batch_size=2": 1}}


def test_a_prompt_of_one_token_is_prefill() -> None:
    loop = Loop()
    loop.add("a", prompt=1, max_tokens=2)
    loop.run()
    assert (loop.metrics().prefill_tokens_sum, loop.metrics().decode_tokens_sum) == (1, 1)


def test_gauges_and_prefix_hits() -> None:
    loop = Loop(pages=10)
    loop.add("a", prompt=40, max_tokens=1)
    loop.run()
    assert pages(loop) == (10, 8, 2, 0)
    loop.add("b", prompt=40, max_tokens=2)
    loop.step()
    assert pages(loop) == (10, 7, 0, 3)
    metrics = loop.metrics()
    assert (metrics.num_requests_running, metrics.num_requests_waiting) == (1, 0)
    assert (metrics.prefix_cache_queries, metrics.prefix_cache_hits) == (80, 32)
    assert (metrics.prompt_tokens_sum, metrics.prefill_tokens_sum) == (80, 48)
    assert metrics.last_finished_request["prefill_tokens"] == 40
    loop.recorder.publish(None)
    assert pages(loop) == (0, 0, 0, 0)
    assert loop.metrics().prefix_cache_hits == 32


def pages(loop: Loop) -> tuple[int, ...]:
    metrics = loop.metrics()
    assert metrics.num_pages == metrics.num_pages_free + metrics.num_pages_cached + metrics.num_pages_held
    return metrics.num_pages, metrics.num_pages_free, metrics.num_pages_cached, metrics.num_pages_held


def test_preemption_is_counted_and_the_gap_it_makes_is_seen() -> None:
    loop = Loop(pages=4, tokens=64)
    loop.add("a", prompt=30, max_tokens=20)
    loop.add("b", prompt=30, start=40, max_tokens=20)
    loop.run()
    metrics = loop.metrics()
    assert metrics.num_preemptions == 1
    assert metrics.prompt_tokens_sum == 60
    assert metrics.prefill_tokens_sum > 60
    assert metrics.completion_tokens_sum == 40
    assert metrics.time_to_first_token_seconds.count == 2
    assert metrics.inter_token_latency_seconds.count == 38
    assert metrics.inter_token_latency_seconds.total > 19.0, "38 steps of half a second, and the wait"


@pytest.mark.parametrize("cause", AbortCause)
def test_aborts_are_counted_once_by_cause(cause: AbortCause) -> None:
    loop = Loop()
    request = loop.add("a", prompt=4)
    loop.add("b", prompt=4, start=20)
    loop.step()
    loop.recorder.aborted(request, cause)
    loop.recorder.aborted(request, AbortCause.RESET)
    loop.recorder.finished(request, FinishReason.STOP)
    loop.recorder.token(request, stop=False)
    loop.recorder.publish(loop.scheduler)
    aborted = loop.metrics().requests_aborted
    assert {name: count for name, count in aborted.items() if count} == {cause.value: 1}
    assert sum(loop.metrics().requests_finished.values()) == 0
    assert loop.metrics().completion_tokens_sum == 2
    loop.recorder.aborted_all(AbortCause.TERMINATION)
    loop.recorder.aborted_all(AbortCause.FAILURE)
    loop.recorder.publish(None)
    assert sum(loop.metrics().requests_aborted.values()) == 2
    assert loop.metrics().requests_aborted["termination"] == 1 + (cause is AbortCause.TERMINATION)


def test_nothing_of_an_ended_request_is_kept() -> None:
    loop = Loop()
    for name in "abc":
        loop.add(name, prompt=4)
    loop.step()
    request = loop.scheduler.running[0]
    loop.recorder.aborted(request, AbortCause.CALLER)
    loop.scheduler.remove(request)
    loop.run()
    assert not loop.recorder._open


def test_what_was_not_published_is_not_seen() -> None:
    loop = Loop()
    loop.add("a", prompt=4, max_tokens=2)
    loop.step()
    before = loop.metrics()
    numbers = dict(before)
    loop.step()
    assert dict(before) == numbers
    assert loop.metrics().num_steps == 2
    loop.recorder.step_cancelled(1.0, 2.0)
    loop.recorder.aborted(loop.add("b", prompt=4), AbortCause.CALLER)
    assert loop.metrics().num_cancelled_steps == loop.metrics().requests_aborted["caller"] == 0
    loop.recorder.publish(loop.scheduler)
    assert loop.metrics().num_cancelled_steps == loop.metrics().requests_aborted["caller"] == 1


def test_reset_counts_from_zero_but_knows_the_open_requests() -> None:
    loop = Loop()
    loop.add("a", prompt=4, max_tokens=3)
    loop.step()
    loop.recorder.reset()
    loop.recorder.publish(loop.scheduler)
    assert loop.metrics().num_steps == loop.metrics().time_to_first_token_seconds.count == 0
    assert loop.metrics().num_requests_running == 1
    loop.run()
    assert loop.metrics().completion_tokens_sum == 2
    assert loop.metrics().requests_finished["length"] == 1


def test_a_reader_beside_the_engine_never_sees_half_of_an_update() -> None:
    loop = Loop()
    done = threading.Event()
    wrong: list[str] = []
    seen: set[int] = set()

    def read() -> None:
        while not done.is_set():
            metrics = loop.metrics()
            finished = metrics.requests_finished["length"]
            seen.add(finished)
            counts = {metrics.e2e_request_latency_seconds.count, metrics.time_to_first_token_seconds.count, finished}
            if len(counts) != 1 or metrics.completion_tokens_sum != 2 * finished or metrics.num_steps != 2 * finished:
                wrong.append(str(dict(metrics)))

    reader = threading.Thread(target=read)
    reader.start()
    recorder = loop.recorder
    publish, recorder.publish = recorder.publish, lambda _: None  # type: ignore[method-assign, assignment]
    for number in range(20_000):
        loop.add(str(number), prompt=4, max_tokens=2)
        loop.run()
        publish(loop.scheduler)
        if len(seen) >= 20:
            break
    done.set()
    reader.join(30)
    assert not reader.is_alive()
    assert wrong == []
    assert len(seen) >= 20


def test_the_metrics_are_a_mapping_too() -> None:
    loop = Loop()
    loop.add("a", prompt=4)
    loop.run()
    metrics = loop.metrics()
    assert metrics["prompt_tokens_sum"] == metrics.prompt_tokens_sum == 4
    assert metrics["decode_tokens_per_s"] == metrics.decode_tokens_per_s
    assert metrics["state"] is EngineState.READY
    assert len(metrics) == len(list(metrics)) == len(dict(metrics))
    assert "items" not in metrics
    for name in ("prometheus_text", "get", "nothing"):
        with pytest.raises(KeyError, match=name):
            metrics[name]
    mlc = {
        *("engine_prefill_time_sum", "engine_decode_time_sum", "prompt_tokens_sum", "completion_tokens_sum"),
        *("prefill_tokens_sum", "decode_tokens_sum", "prefill_tokens_per_s", "decode_tokens_per_s"),
        *("last_finished_request", "decode_time_by_batch_size"),
    }
    assert mlc <= set(metrics)


# Prometheus.


def test_prometheus_text_is_what_the_snapshot_says() -> None:
    loop = Loop(pages=10, tokens=64)
    loop.add("a", prompt=40, max_tokens=4)
    aborted = loop.add("b", prompt=8, start=20, waited=0.25)
    loop.step()
    loop.scheduler.remove(aborted)
    loop.recorder.aborted(aborted, AbortCause.TIMEOUT)
    loop.run()
    metrics = loop.metrics()
    families = read_exposition(metrics.prometheus_text({"model_name": 'a "b"\\\n'}))
    label = (("model_name", 'a "b"\\\n'),)
    values = {key: value for family in families.values() for key, value in family.samples.items()}
    assert all(family.description for family in families.values())
    assert all(label[0] in labels for _, labels in values)

    def value(name: str, **labels: str) -> float:
        return values[f"windlass_{name}", tuple(sorted({**dict(label), **labels}.items()))]

    assert value("engine_state", state="ready") == 1
    assert value("engine_state", state="failed") == 0
    assert value("num_requests_running") == 0
    assert value("kv_cache_usage_perc") == 0.0
    assert value("kv_cache_pages", use="cached") == metrics.num_pages_cached == 2
    assert value("prompt_tokens_total") == 48
    assert value("generation_tokens_total") == metrics.completion_tokens_sum
    assert value("prefix_cache_queries_total") == 48
    assert value("request_success_total", finished_reason="length") == 1
    assert value("request_aborts_total", cause="timeout") == 1
    assert value("request_aborts_total", cause="caller") == 0
    assert value("decode_step_seconds_count", batch_size="1") == metrics.decode_steps_by_batch_size[1][0]
    assert value("time_to_first_token_seconds_count") == 2
    assert value("time_to_first_token_seconds_sum") == metrics.time_to_first_token_seconds.total
    assert value("time_to_first_token_seconds_bucket", le="0.25") == 0
    assert value("time_to_first_token_seconds_bucket", le="0.5") == 1
    assert value("time_to_first_token_seconds_bucket", le="+Inf") == 2
    vllm = {
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total"),
        *("prefix_cache_hits_total", "prompt_tokens_total", "generation_tokens_total", "request_success_total"),
        *("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"),
        *("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"),
        *("request_prompt_tokens", "request_generation_tokens"),
    }
    assert {f"windlass_{name}" for name in vllm} <= set(families)


@given(
    values=st.lists(st.floats(0, 10), max_size=20),
    label=st.text(),
    description=st.text(st.characters(exclude_characters="\r")),
)
def test_the_format_carries_any_label_and_value(values: list[float], label: str, description: str) -> None:
    text = Exposition("x_", {"l": label})
    bounds = [1.0, 2.5, 5.0]
    counts = [
        sum(low < value <= high for value in values) for low, high in [(-1, 1), (1, 2.5), (2.5, 5), (5, math.inf)]
    ]
    text.add("gauge", "g", description, [({"n": str(n)}, value) for n, value in enumerate(values)])
    text.add_histogram("h", "", bounds, counts, sum(values))
    families = read_exposition(text.text())
    assert families["x_g"].description == description
    assert list(families["x_g"].samples.values()) == values
    assert all(dict(labels)["l"] == label for _, labels in families["x_g"].samples)
    assert families["x_h"].samples["x_h_count", (("l", label),)] == len(values)


def test_several_engines_share_the_families_of_one_document() -> None:
    busy, idle = Loop(), Loop()
    busy.add("a", prompt=40, max_tokens=4)
    busy.run()
    text = Exposition()
    for name, loop in (("busy", busy), ("idle", idle)):
        loop.metrics().add_to(text.part(PREFIX, {"model_name": name}))
    add_state(text.part(PREFIX, {"model_name": "absent"}), EngineState.LOADING)
    text.add("gauge", "other", "Of no engine.", [({}, 1)])
    families = read_exposition(text.text())  # refuses a family that is there twice
    tokens = families["windlass_prompt_tokens_total"].samples
    assert list(tokens.values()) == [40, 0]
    assert [dict(labels)["model_name"] for _, labels in tokens] == ["busy", "idle"]
    states = families["windlass_engine_state"].samples
    loading = tuple(sorted({"model_name": "absent", "state": "loading"}.items()))
    assert states["windlass_engine_state", loading] == 1
    assert len(states) == 3 * len(EngineState)
    counts = families["windlass_e2e_request_latency_seconds"].samples
    assert counts["windlass_e2e_request_latency_seconds_count", (("model_name", "busy"),)] == 1
    assert list(families["other"].samples) == [("other", ())]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300, 5e-324, 0, 10**18])
def test_unusual_numbers(value: float) -> None:
    text = Exposition("", {})
    text.add("gauge", "g", "d", [({}, value)])
    assert repr(read_exposition(text.text())["g"].samples["g", ()]) == repr(float(value))


@given(st.floats(0, 2000))
def test_an_observation_falls_into_the_first_bucket_that_holds_it(value: float) -> None:
    recorder = MetricsRecorder(clock=lambda: value)
    request, _ = make_request("a", prompt=4)
    recorder.accepted(request, 0.0)
    recorder.finished(request, FinishReason.STOP)
    recorder.publish(None)
    histogram = recorder.snapshot(EngineState.READY).e2e_request_latency_seconds
    index = histogram.counts.index(1)
    assert index == len(histogram.bounds) or value <= histogram.bounds[index]
    assert index == 0 or value > histogram.bounds[index - 1]
    assert len(histogram.counts) == len(histogram.bounds) + 1
