"""L3 to L8: what becomes of every request, whoever reads it, leaves it, or floods the engine."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.lifecycle import (
    ANSWER,
    ENDLESS,
    LIMIT,
    LLAMA_1B,
    LONG,
    PROMPT,
    QUESTION,
    AsyncFace,
    Face,
    Gate,
    Started,
    ask,
    contents,
    core_of,
    idle_and_whole,
    read,
    replace_run,
    wait_for,
    write_shape,
)
from windlass import (
    AsyncMLCEngine,
    ContextLengthError,
    EngineConfig,
    EngineError,
    EngineFailedError,
    EngineOverloadedError,
    EngineTerminatedError,
    EngineUnloadedError,
    InvalidRequestError,
    MLCEngine,
    RequestAbortedError,
    RequestTimeoutError,
)
from windlass.engine.state import EngineState
from windlass.program.executor import Batch
from windlass.serve.engine_base import MLCEngineBase

QUESTIONS = [f"What is {a} + {a + 3}?" for a in range(10, 22)]


# L3: exactly one ending


def test_L03_a_stream_ends_once_and_stays_ended(face: Face, engine: MLCEngineBase) -> None:
    reader = face.stream(engine)
    assert read(reader) == ANSWER
    assert [reader.next() for _ in range(3)] == [None] * 3
    reader.close()
    assert reader.next() is None


def test_L03_a_cut_stream_never_looks_complete(face: Face) -> None:
    engine = face.build(slow=True)
    reader = face.stream(engine, LONG, request_id="cut", **ENDLESS)
    reader.next()
    face.call(engine, "abort", "cut")
    with pytest.raises(RequestAbortedError, match="cut"):
        read(reader)
    assert reader.next() is None, "an error is raised once; the stream is closed then"


@pytest.mark.parametrize("end", ["terminate", "abort", "reset", "unload", "failure"])
def test_L03_every_choice_and_every_call_hears_of_the_end(face: Face, end: str) -> None:
    engine = face.build(max_num_sequence=3)
    gate = Gate(engine)
    gate.shut()
    calls = [
        Started(face.create, engine, LONG, n=1 + i % 2, stream=False, request_id=f"r{i}", **ENDLESS) for i in range(6)
    ]
    assert wait_for(lambda: core_of(engine).num_open == 6)
    assert gate.held.wait(LIMIT)
    expected: type[Exception] = RequestAbortedError
    if end == "terminate":
        ending = Started(face.terminate, engine)
        expected = EngineTerminatedError
    elif end == "abort":
        ending = Started(lambda: [face.call(engine, "abort", f"r{i}") for i in range(6)])
    elif end == "failure":
        core_of(engine)._inbox.put(lambda: 1 / 0)
        ending = Started(gate.open.set)
        expected = EngineFailedError
    else:
        ending = Started(face.call, engine, end)
    if end != "failure":
        # Told at once, not only when the step that runs has ended.
        for call in calls:
            assert call.ended()
    gate.open.set()
    assert ending.ended()
    for call in calls:
        assert call.ended()
        assert type(call.error) is expected


def test_L03_what_had_finished_stays_readable(face: Face, engine: MLCEngineBase) -> None:
    readers = [face.stream(engine) for _ in range(3)]
    assert core_of(engine).wait_until_idle(LIMIT)
    face.terminate(engine)
    assert [read(reader) for reader in readers] == [ANSWER] * 3


def test_L03_an_id_that_is_used_again_does_not_end_the_new_call(face: Face) -> None:
    """A stop string is found when the text is delivered, which may be after the id went to another call."""
    engine = face.build()
    core = core_of(engine)
    stop_back, go_on = threading.Event(), threading.Event()
    deliver = core._stream_back._queue

    class Held:
        def __init__(self, event: Any) -> None:
            self.event = event

        def __iter__(self) -> Any:
            stop_back.set()
            assert go_on.wait(LIMIT)
            return iter(self.event)

    publish = core._stream_back.publish
    core._stream_back.publish = lambda events: deliver.put(Held(events))  # type: ignore[assignment, arg-type, method-assign]
    first = Started(face.answer, engine, request_id="again", stop="capital")
    assert stop_back.wait(LIMIT)
    assert wait_for(lambda: core.num_open == 0)
    core._stream_back.publish = publish  # type: ignore[method-assign]
    gate = Gate(engine)
    gate.shut()
    second = Started(face.answer, engine, request_id="again")
    assert gate.held.wait(LIMIT)
    go_on.set()
    assert first.result() == ANSWER[: ANSWER.index("capital")]
    gate.open.set()
    assert second.result() == ANSWER


# L4: refusals


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"temperature": -1.0}, InvalidRequestError),
        ({"max_tokens": 0}, InvalidRequestError),
        ({"stop": ""}, InvalidRequestError),
        ({"logit_bias": {"999999": 1.0}}, InvalidRequestError),
        ({"n": 10**9}, InvalidRequestError),
        ({"timeout": -1}, InvalidRequestError),
        ({"no_such_argument": 1}, (InvalidRequestError, TypeError)),
    ],
)
def test_L04_L07_a_bad_request_is_refused_at_create_and_fails_alone(
    face: Face, arguments: dict[str, Any], error: type[Exception]
) -> None:
    engine = face.build(slow=True)
    other = face.stream(engine)
    with pytest.raises(error):
        face.stream(engine, **arguments)
    assert read(other) == ANSWER


def test_L04_a_prompt_that_leaves_no_room_is_refused(face: Face) -> None:
    engine = face.build(max_single_sequence_length=64)
    with pytest.raises(ContextLengthError):
        face.stream(engine, LONG * 20)
    answer = face.create(engine, LONG, max_tokens=10_000, debug_config={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 64


def test_L04_each_state_refuses_with_its_own_error(face: Face) -> None:
    engine = face.build()
    face.call(engine, "unload")
    with pytest.raises(EngineUnloadedError, match="unloaded"):
        face.stream(engine)
    with pytest.raises(EngineUnloadedError):
        _ = engine.tokenizer
    face.call(engine, "reload")
    gate = Gate(engine)
    gate.shut()
    reader = face.stream(engine)
    assert gate.held.wait(LIMIT)
    ending = Started(face.terminate, engine, drain=True)
    assert wait_for(lambda: engine.state is EngineState.DRAINING)
    with pytest.raises(EngineTerminatedError, match="draining"):
        face.stream(engine)
    gate.open.set()
    assert read(reader) == ANSWER
    assert ending.ended()
    with pytest.raises(EngineTerminatedError, match="terminated"):
        face.stream(engine)


def test_L04_the_queue_is_bounded_in_requests_and_tokens(face: Face) -> None:
    tokens = face.create(face.build()).usage.prompt_tokens
    for settings in ({"max_waiting_requests": 3}, {"max_waiting_tokens": 3 * tokens + 1}):
        engine = face.build(max_num_sequence=1, **settings)
        gate = Gate(engine)
        gate.shut()
        readers = [face.stream(engine)]
        assert gate.held.wait(LIMIT)
        with pytest.raises(EngineOverloadedError) as caught:
            for _ in range(20):
                readers.append(face.stream(engine))
        assert caught.value.retry_after > 0
        assert len(readers) == 4
        gate.open.set()
        assert [read(reader) for reader in readers] == [ANSWER] * 4
        assert face.answer(engine) == ANSWER
        face.terminate(engine)


def test_L04_more_requests_than_sequences_wait_their_turn(face: Face) -> None:
    engine = face.build(max_num_sequence=2)
    calls = [Started(face.answer, engine, question) for question in QUESTIONS * 3]
    answers = [call.result() for call in calls]
    assert answers == answers[: len(QUESTIONS)] * 3


# L5: leaving


def leave_by_close(face: Face, engine: MLCEngineBase) -> None:
    reader = face.stream(engine, LONG, **ENDLESS)
    reader.next()
    reader.close()


def leave_by_dropping(face: Face, engine: MLCEngineBase) -> None:
    face.stream(engine, LONG, **ENDLESS).next()


def leave_by_break(face: Face, engine: MLCEngineBase) -> None:
    if isinstance(face, AsyncFace):

        async def use() -> None:
            async for _ in await ask(engine, LONG, stream=True, **ENDLESS):
                break

        face.run(use())
    else:
        for _ in ask(engine, LONG, stream=True, **ENDLESS):
            break


def leave_by_interrupt(face: Face, engine: MLCEngineBase) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    if isinstance(face, AsyncFace):

        async def use() -> None:
            async for _ in await ask(engine, LONG, stream=True, **ENDLESS):
                raise KeyError("interrupted")

        with pytest.raises(KeyError):
            face.run(use())
    else:
        with pytest.raises(KeyboardInterrupt):
            for _ in ask(engine, LONG, stream=True, **ENDLESS):
                interrupted()


def leave_by_cancelling(face: Face, engine: MLCEngineBase) -> None:
    if not isinstance(face, AsyncFace):
        pytest.skip("tasks are async")

    async def use() -> None:
        streams = [await ask(engine, LONG, stream=True, **ENDLESS)]
        tasks = [asyncio.ensure_future(contents(streams.pop())), asyncio.ensure_future(ask(engine, LONG, **ENDLESS))]
        while core_of(engine).num_open < 2:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)

    face.run(use())


def leave_by_abort(face: Face, engine: MLCEngineBase) -> None:
    call = Started(face.create, engine, LONG, request_id="left", **ENDLESS)
    assert wait_for(lambda: core_of(engine).num_open == 1)
    face.call(engine, "abort", "left")
    assert call.ended()
    assert isinstance(call.error, RequestAbortedError)


def leave_by_timeout(face: Face, engine: MLCEngineBase) -> None:
    started = time.monotonic()
    with pytest.raises(RequestTimeoutError):
        face.create(engine, LONG, timeout=0.2, **ENDLESS)
    with pytest.raises(TimeoutError):
        read(face.stream(engine, LONG, timeout=0.2, **ENDLESS))
    assert 0.4 <= time.monotonic() - started < 0.4 + 2 * PROMPT


WAYS = [
    leave_by_close,
    leave_by_dropping,
    leave_by_break,
    leave_by_interrupt,
    leave_by_cancelling,
    leave_by_abort,
    leave_by_timeout,
]


@pytest.mark.parametrize("leave", WAYS, ids=lambda way: way.__name__)
def test_L05_leaving_frees_the_pages_at_once(face: Face, leave: Callable[[Face, MLCEngineBase], None]) -> None:
    engine = face.build(slow=True)
    leave(face, engine)
    left = time.monotonic()
    assert idle_and_whole(engine, PROMPT)
    print(f"pages back after {1000 * (time.monotonic() - left):.1f} ms")
    assert face.answer(engine) == ANSWER


@pytest.mark.parametrize("phase", ["waiting", "prefill", "decode"])
def test_L05_a_request_can_be_aborted_in_every_phase(face: Face, phase: str) -> None:
    engine = face.build(max_num_sequence=1, prefill_chunk_size=16)
    gate = Gate(engine)
    if phase == "waiting":
        gate.shut()
        first = face.stream(engine)
        assert gate.held.wait(LIMIT)
    reader = face.stream(engine, LONG, request_id="it", **ENDLESS)
    if phase == "prefill":
        gate.shut()
        if not gate.held.wait(0.01):
            assert gate.held.wait(LIMIT)
    elif phase == "decode":
        reader.next()
    face.call(engine, "abort", "it")
    with pytest.raises(RequestAbortedError):
        read(reader)
    gate.open.set()
    if phase == "waiting":
        assert read(first) == ANSWER
    assert idle_and_whole(engine, PROMPT)


def test_L05_timeouts_count_while_waiting_and_in_any_order(face: Face) -> None:
    engine = face.build(max_num_sequence=1)
    gate = Gate(engine)
    gate.shut()
    reader = face.stream(engine)
    assert gate.held.wait(LIMIT)
    calls = [Started(face.create, engine, LONG, timeout=timeout) for timeout in (0.3, 0.1, 0.2)]
    for call in calls:
        assert call.ended()
        assert isinstance(call.error, RequestTimeoutError)
    assert calls[1].ended_at < calls[2].ended_at < calls[0].ended_at
    gate.open.set()
    assert read(reader) == ANSWER
    # One that is in time hears nothing of it.
    assert face.answer(engine, timeout=30.0) == ANSWER


def test_L05_a_storm_of_aborts_leaves_the_others_alone(face: Face) -> None:
    engine = face.build(max_num_sequence=4, max_total_sequence_length=2048)
    whole = [face.answer(engine, question) for question in QUESTIONS]
    kept = [Started(face.answer, engine, question) for question in QUESTIONS]
    aborted = 0
    for i in range(150):
        reader = face.stream(engine, LONG, request_id=f"storm-{i}", **ENDLESS)
        if i % 3 == 0:
            face.call(engine, "abort", f"storm-{i}")
        elif i % 3 == 1:
            reader.close()
        else:
            del reader
        aborted += 1
    assert [call.result() for call in kept] == whole
    left = time.monotonic()
    assert idle_and_whole(engine, PROMPT)
    print(f"pages back {1000 * (time.monotonic() - left):.1f} ms after {aborted} aborts")


def test_L05_a_closed_event_loop_aborts_what_was_open_on_it() -> None:
    with MLCEngine(engine_config=EngineConfig(verbose=False)):
        pass
    face = AsyncFace()
    engine = face.build(slow=True)
    streams: list[Any] = []
    loop = asyncio.new_event_loop()

    async def open_one() -> None:
        streams.append(await ask(engine, LONG, stream=True, **ENDLESS))
        await anext(streams[0])

    loop.run_until_complete(open_one())
    pending = loop.create_task(ask(engine, LONG, **ENDLESS))
    loop.run_until_complete(asyncio.sleep(0))
    assert wait_for(lambda: core_of(engine).num_open == 2)
    loop.close()
    closed = time.monotonic()
    assert idle_and_whole(engine, PROMPT)
    print(f"pages back {1000 * (time.monotonic() - closed):.1f} ms after the loop was closed")
    pending._log_destroy_pending = False  # type: ignore[attr-defined]
    del pending
    assert face.answer(engine) == ANSWER
    face.finish()


def test_L05_a_call_that_nobody_waits_for_any_more_is_undone() -> None:
    """The task is cancelled between the acceptance of its call and its next step."""
    face = AsyncFace()
    engine = face.build(slow=True)

    async def use() -> None:
        for _ in range(30):
            task = asyncio.ensure_future(ask(engine, LONG, stream=True, **ENDLESS))
            while core_of(engine).num_open == 0:
                # Not a step of the loop, so the task cannot have heard.
                if task.done() or not await _accepted(engine):
                    break
            task.cancel()
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            del task, outcome
            while core_of(engine).num_open:
                await asyncio.sleep(0.001)

    async def _accepted(engine: MLCEngineBase) -> bool:
        deadline = time.monotonic() + 0.05
        while core_of(engine).num_open == 0 and time.monotonic() < deadline:
            time.sleep(0)
        if core_of(engine).num_open == 0:
            await asyncio.sleep(0)
            return True
        return False

    face.run(use())
    assert idle_and_whole(engine, PROMPT)
    face.finish()


# L6: concurrency


def test_L06_many_threads_use_one_engine(face: Face) -> None:
    engine = face.build(max_num_sequence=8)
    alone = [face.answer(engine, question) for question in QUESTIONS]
    whole = [Started(face.answer, engine, question) for question in QUESTIONS]
    streams = [Started(lambda q=question: read(face.stream(engine, q))) for question in QUESTIONS]
    assert [call.result() for call in whole] == alone
    assert [call.result() for call in streams] == alone


def test_L06_concurrent_calls_are_batched(face: Face) -> None:
    engine = face.build(max_num_sequence=4)
    sizes: list[int] = []

    def run(original: Callable[[Batch], Any], batch: Batch) -> Any:
        sizes.append(len(batch.token_starts) - 1)
        return original(batch)

    replace_run(engine, run)
    held = threading.Event()
    core_of(engine)._inbox.put(lambda: held.wait(LIMIT))
    calls = [Started(face.answer, engine, question) for question in QUESTIONS]
    assert wait_for(lambda: core_of(engine).num_open == len(QUESTIONS))
    held.set()
    for call in calls:
        call.result()
    assert max(sizes) == 4


def test_L06_many_event_loops_use_one_engine_at_once_and_one_after_the_other() -> None:
    face = AsyncFace()
    engine = face.build()
    assert isinstance(engine, AsyncMLCEngine)

    async def use(question: str) -> list[str]:
        stream = await ask(engine, question, stream=True)
        whole, streamed = await asyncio.gather(ask(engine, question), contents(stream))
        return [whole.choices[0].message.content, streamed]

    alone = [asyncio.run(use(question)) for question in QUESTIONS[:4]]
    together = [Started(asyncio.run, use(question)) for question in QUESTIONS[:4]]
    assert [one.result() for one in together] == alone
    assert all(whole == streamed for whole, streamed in alone)
    face.finish()


def test_L06_everybody_who_reads_one_stream_hears_of_its_end(face: Face) -> None:
    engine = face.build()
    gate = Gate(engine)
    gate.shut()
    reader = face.stream(engine)
    assert gate.held.wait(LIMIT)
    parts: list[str] = []

    def take() -> None:
        while (text := reader.next()) is not None:
            parts.append(text)

    readers = [Started(take) for _ in range(4)]
    gate.open.set()
    for one in readers:
        one.result()
    assert sorted("".join(parts)) == sorted(ANSWER)


@pytest.mark.slow
def test_L06_no_gap_beside_a_long_prefill_of_the_1B_shape(tmp_path: Path) -> None:
    """Figures of the contract: 2,000 tokens of prompt, and no other stream waits 250 ms for its next token."""
    config = EngineConfig(load_format="dummy", quantization="q4f16_1", max_total_sequence_length=4096, verbose=False)
    debug = {"debug_config": {"ignore_eos": True}}
    with MLCEngine(write_shape(tmp_path, **LLAMA_1B), engine_config=config) as engine:
        stream = engine.completions.create(prompt=[5] * 16, max_tokens=2000, stream=True, extra_body=debug)
        next(stream)
        long = threading.Thread(
            target=engine.completions.create,
            kwargs={"prompt": list(range(10, 2010)), "max_tokens": 1, "extra_body": debug},
        )
        times = [time.monotonic()]
        long.start()
        while long.is_alive():
            next(stream)
            times.append(time.monotonic())
        long.join()
        stream.close()
    gaps = sorted(after - before for before, after in itertools.pairwise(times))
    print(f"{len(gaps)} tokens in {times[-1] - times[0]:.1f} s, longest gap {1000 * gaps[-1]:.0f} ms")
    assert gaps[-1] < 0.25


# L7, L8


def test_L07_an_output_that_breaks_ends_its_call_and_frees_its_pages(face: Face) -> None:
    engine = face.build(slow=True)
    text = engine.tokenizer
    broken = Started(face.create, engine, LONG, request_id="broken", **ENDLESS)
    core = core_of(engine)
    assert wait_for(lambda: core.num_open == 1)
    other = Started(face.answer, engine)

    def put(*_: object) -> None:
        raise SystemExit("an output that is broken in an unusual way")

    for requests in core._accounts.all():
        if requests[0].request_id == "broken":
            requests[0].output.put = put  # type: ignore[method-assign]
    assert broken.ended()
    assert isinstance(broken.error, RequestAbortedError)
    assert other.result() == ANSWER
    assert idle_and_whole(engine, PROMPT)
    assert engine.tokenizer is text


def test_L08_a_consumer_that_does_not_read_delays_nobody(face: Face, engine: MLCEngineBase) -> None:
    stuck = [face.stream(engine, LONG, **ENDLESS) for _ in range(3)]
    started = time.monotonic()
    assert face.answer(engine) == ANSWER
    assert core_of(engine).wait_until_idle(LIMIT), "the engine finishes what nobody reads"
    print(f"everything generated in {time.monotonic() - started:.2f} s while three streams were not read")
    texts = [read(reader) for reader in stuck]
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) > 1000


def test_L08_a_consumer_that_blocks_its_event_loop_delays_nobody_else() -> None:
    face = AsyncFace()
    engine = face.build()
    blocked, release = threading.Event(), threading.Event()

    async def stuck() -> str:
        stream = await ask(engine, LONG, stream=True)
        await anext(stream)
        blocked.set()
        release.wait(LIMIT)
        return await contents(stream)

    one = Started(asyncio.run, stuck())
    assert blocked.wait(LIMIT)
    assert face.answer(engine) == ANSWER
    release.set()
    assert one.result()
    face.finish()


def test_L05_a_drain_does_not_wait_for_a_call_that_was_refused(face: Face) -> None:
    """A refusal after the second look takes the call back; whoever waits for idleness must hear of that."""
    engine = face.build()
    core = core_of(engine)
    original = core.lifecycle.refusal
    looks: list[int] = []
    draining = threading.Event()

    def refusal() -> EngineError | None:
        looks.append(1)
        # before preparation, parts, first look, second look
        if len(looks) == 4:
            assert wait_for(lambda: bool(core._accounts._idle_waiters))
            draining.set()
        return original()

    core.lifecycle.refusal = refusal  # type: ignore[method-assign]
    call = Started(face.create, engine, QUESTION)
    assert wait_for(lambda: len(looks) == 4)
    ending = Started(engine.terminate, drain=True)
    assert draining.wait(LIMIT)
    assert call.ended()
    assert isinstance(call.error, EngineTerminatedError)
    assert ending.ended()
