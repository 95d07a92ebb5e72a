"""L26: same request, same seed, same tokens and the same logprobs to the last bit, whatever else happens."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from support.lifecycle import LIMIT, LONG, Face, Started, core_of, idle_and_whole, wait_for
from windlass.native.cpu import cpu_info
from windlass.serve.engine_base import MLCEngineBase

PREFIX = "You are a careful assistant who knows many stories about animals in the forest. "

REQUESTS: list[dict[str, Any]] = [
    {"text": LONG, "temperature": 1.2, "seed": 1, "max_tokens": 40},
    {"text": PREFIX + LONG, "temperature": 0.9, "top_p": 0.9, "seed": 2, "max_tokens": 30},
    {"text": PREFIX + "What is 12 + 15?", "temperature": 0.0, "max_tokens": 20},
    {"text": "Count from 1 to 9.", "temperature": 1.0, "top_k": 20, "seed": 3, "max_tokens": 30},
    {"text": PREFIX + "Hello!", "temperature": 1.5, "min_p": 0.02, "seed": 4, "max_tokens": 30},
    {"text": LONG, "temperature": 1.0, "frequency_penalty": 0.5, "seed": 5, "max_tokens": 40, "n": 2},
]
"""Greedy and sampled, alone and with brothers, some with a common prefix of several pages."""


def outcome(face: Face, engine: MLCEngineBase, request: dict[str, Any]) -> Any:
    """The choices of a request: texts, reasons, and every token with its logprob."""
    response = face.create(engine, **request, logprobs=True, top_logprobs=2)
    return [choice.model_dump() for choice in response.choices]


def together(face: Face, engine: MLCEngineBase, requests: list[dict[str, Any]]) -> list[Any]:
    """The outcomes of requests that are all accepted before the first of them runs."""
    with _Held(engine) as held:
        calls = [Started(outcome, face, engine, request) for request in requests]
        held.wait_for(len(requests))
    return [call.result(3 * LIMIT) for call in calls]


class _Held:
    """The engine thread waits while this block lasts."""

    def __init__(self, engine: MLCEngineBase) -> None:
        self._core = core_of(engine)
        self._go_on = threading.Event()

    def __enter__(self) -> _Held:
        self._core._inbox.put(lambda: self._go_on.wait(LIMIT))
        return self

    def wait_for(self, count: int) -> None:
        assert wait_for(lambda: self._core.num_open == count)

    def __exit__(self, *_: object) -> None:
        self._go_on.set()


@pytest.fixture(scope="module")
def expected() -> dict[str, list[Any]]:
    """For each kernel table, what each request gives alone, on an engine of its own, nothing cached or drafted."""
    return {}


def alone(face: Face, expected: dict[str, list[Any]], kernels: str) -> list[Any]:
    if kernels not in expected:
        engine = face.build(kernels=kernels, prefix_cache_mode="disable", speculative_mode="disable", num_threads=1)
        expected[kernels] = [outcome(face, engine, request) for request in REQUESTS]
        engine.terminate()
    return expected[kernels]


@pytest.mark.parametrize("kernels", cpu_info().kernels)
def test_L26_in_batches_of_1_to_16(face: Face, expected: dict[str, list[Any]], kernels: str) -> None:
    wanted = alone(face, expected, kernels)
    engine = face.build(kernels=kernels, max_num_sequence=16, max_total_sequence_length=4096)
    for size in (1, 2, 3, 5, 8, 16):
        requests = [REQUESTS[(size + i) % len(REQUESTS)] for i in range(size)]
        outcomes = together(face, engine, requests)
        assert outcomes == [wanted[(size + i) % len(REQUESTS)] for i in range(size)], size
        if size % 2:
            face.call(engine, "reset")
    assert idle_and_whole(engine)


@pytest.mark.parametrize("kernels", cpu_info().kernels)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_L26_with_any_number_of_threads(
    face: Face, expected: dict[str, list[Any]], kernels: str, num_threads: int
) -> None:
    engine = face.build(kernels=kernels, num_threads=num_threads, max_num_sequence=6)
    assert together(face, engine, REQUESTS) == alone(face, expected, kernels)


@pytest.mark.parametrize("chunk", [1, 5, 16, 17, 64, 512])
def test_L26_with_any_chunking(face: Face, expected: dict[str, list[Any]], chunk: int) -> None:
    engine = face.build(prefill_chunk_size=chunk, max_num_sequence=1, prefix_cache_mode="disable")
    wanted = alone(face, expected, cpu_info().kernels[-1])
    assert [outcome(face, engine, request) for request in REQUESTS] == wanted
    face.terminate(engine)
    engine = face.build(prefill_chunk_size=max(chunk, 6), max_num_sequence=6)
    assert together(face, engine, REQUESTS) == wanted


def test_L26_with_and_without_prefix_hits(face: Face, expected: dict[str, list[Any]]) -> None:
    wanted = alone(face, expected, cpu_info().kernels[-1])
    engine = face.build()
    for _ in range(3):
        assert [outcome(face, engine, request) for request in REQUESTS] == wanted
    reused = face.create(engine, PREFIX + LONG, max_tokens=1).usage.prompt_tokens_details.cached_tokens
    assert reused >= 16
    face.call(engine, "reset")
    assert [outcome(face, engine, request) for request in reversed(REQUESTS)] == wanted[::-1]


def test_L26_after_preemption(face: Face, expected: dict[str, list[Any]]) -> None:
    wanted = alone(face, expected, cpu_info().kernels[-1])
    engine = face.build(max_num_sequence=7, max_total_sequence_length=192, max_single_sequence_length=176)
    preempted: list[int] = []
    runtime = core_of(engine)._runtime
    assert runtime is not None
    original = runtime.scheduler._preempt

    def preempt(request: Any) -> None:
        preempted.append(request.num_generated)
        original(request)

    runtime.scheduler._preempt = preempt  # type: ignore[method-assign]
    for _ in range(3):
        assert together(face, engine, REQUESTS) == wanted
    assert any(preempted), "nothing was preempted in the middle of its answer"
    del runtime.scheduler._preempt


def test_L26_with_aborts_and_terminations_beside_it(face: Face, expected: dict[str, list[Any]]) -> None:
    wanted = alone(face, expected, cpu_info().kernels[-1])
    engine, other = face.build(max_num_sequence=8), face.build()
    calls = [Started(outcome, face, engine, request) for request in REQUESTS * 3]
    readers = []
    for i in range(60):
        reader = face.stream(engine, LONG, request_id=f"abort-{i}", temperature=1.0, max_tokens=500)
        if i % 2:
            face.call(engine, "abort", f"abort-{i}")
        else:
            readers.append(reader)
        if i % 7 == 0:
            readers.clear()
        if i == 30:
            other.terminate()
    readers.clear()
    del reader
    assert [call.result(3 * LIMIT) for call in calls] == wanted * 3
    assert idle_and_whole(engine)


@pytest.mark.parametrize("kernels", cpu_info().kernels)
@pytest.mark.parametrize("length", [0, 1, 3, 8])
def test_L26_with_ngram_drafts(face: Face, expected: dict[str, list[Any]], kernels: str, length: int) -> None:
    wanted = alone(face, expected, kernels)
    engine = face.build(kernels=kernels, spec_draft_length=length, max_num_sequence=8)
    for size in (1, 3, 8):
        requests = [REQUESTS[(size + i) % len(REQUESTS)] for i in range(size)]
        assert together(face, engine, requests) == [wanted[(size + i) % len(REQUESTS)] for i in range(size)], size
    if length:
        assert core_of(engine).metrics().accepted_draft_tokens_sum > 0
    assert idle_and_whole(engine)


@pytest.mark.parametrize("length", [2, 6])
def test_L26_with_drafts_and_preemption_and_aborts(face: Face, expected: dict[str, list[Any]], length: int) -> None:
    wanted = alone(face, expected, cpu_info().kernels[-1])
    engine = face.build(
        spec_draft_length=length, max_num_sequence=7, max_total_sequence_length=192, max_single_sequence_length=176
    )
    for number in range(6):
        calls = [Started(outcome, face, engine, request) for request in REQUESTS]
        reader = face.stream(engine, LONG, request_id=f"abort-{number}", max_tokens=100)
        reader.next()
        if number % 2:
            face.call(engine, "abort", f"abort-{number}")
        else:
            reader.close()
        assert [call.result(3 * LIMIT) for call in calls] == wanted
    metrics = core_of(engine).metrics()
    assert metrics.num_preemptions > 0
    assert metrics.accepted_draft_tokens_sum > 0
    assert idle_and_whole(engine)


def test_L26_stop_strings_end_an_answer_at_the_same_place_with_drafts(face: Face) -> None:
    text = "Repeat after me: red green blue red green blue red green blue red green blue"
    outcomes = []
    for settings in ({"speculative_mode": "disable"}, {"spec_draft_length": 6}, {"spec_draft_length": 0}):
        engine = face.build(**settings)
        outcomes.append([outcome(face, engine, {"text": text, "stop": stop}) for stop in (["ue red"], ["n b"], ["zz"])])
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0][0][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("kv_cache_dtype", ["f32", "f16", "bf16", "int16", "int8"])
def test_L26_with_every_kv_type(face: Face, kv_cache_dtype: str) -> None:
    engine = face.build(kv_cache_dtype=kv_cache_dtype, prefill_chunk_size=7, max_num_sequence=1)
    one = [outcome(face, engine, request) for request in REQUESTS]
    face.terminate(engine)
    engine = face.build(kv_cache_dtype=kv_cache_dtype, max_num_sequence=8, num_threads=3)
    assert together(face, engine, REQUESTS) == one
