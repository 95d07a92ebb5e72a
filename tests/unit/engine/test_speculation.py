"""The tokens of a request are the same with drafts and without, whatever happens on the way; no page is lost."""

from __future__ import annotations

import itertools
import random
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from support.fakes import RecordingOutput
from windlass.engine.draft_model import ModelSpeculator
from windlass.engine.pages import CachedPage
from windlass.engine.recorder import MetricsRecorder
from windlass.engine.request import Request, SamplingParams
from windlass.engine.runtime import Runtime
from windlass.engine.sampler import Sampler
from windlass.engine.scheduler import Chunk
from windlass.engine.speculation import NgramSpeculator, Speculator
from windlass.engine.state import EngineState
from windlass.engine.stream import TokenEvent
from windlass.program.executor import Batch, StepCancelledError, check_batch

VOCAB = 12


class ContextExecutor:
    """A model whose logits depend on every token in the cache before them, and that mostly goes round in circles."""

    def __init__(self, num_pages: int, max_tokens: int, salt: int = 0) -> None:
        self.num_pages, self.max_tokens, self.salt = num_pages, max_tokens, salt
        self.slots = np.full(num_pages * 16, -1)
        self.cancelled = False
        self.num_runs = self.num_tokens = 0
        self.poisoned: int | None = None

    def run(self, batch: Batch) -> NDArray[np.float32]:
        batch = check_batch(
            batch, vocab_size=VOCAB, num_pages=self.num_pages, max_tokens=self.max_tokens, max_positions=10_000
        )
        contexts: list[list[int]] = []
        for s, (start, end) in enumerate(itertools.pairwise(batch.token_starts)):
            pages = batch.page_ids[batch.page_starts[s] : batch.page_starts[s + 1]]
            slots = (pages[:, None] * 16 + np.arange(16)).ravel()
            self.slots[slots[batch.positions[start:end]]] = batch.token_ids[start:end]
            contexts += [self.slots[slots[: position + 1]].tolist() for position in batch.positions[start:end]]
        if self.cancelled:
            self.cancelled = False
            raise StepCancelledError
        self.num_runs += 1
        self.num_tokens += len(batch.token_ids)
        if not len(batch.logit_rows):
            return np.zeros((0, VOCAB), dtype=np.float32)
        return np.stack([self.logits(contexts[row]) for row in batch.logit_rows])

    def logits(self, context: list[int]) -> NDArray[np.float32]:
        assert -1 not in context, "a slot is read that nobody wrote"
        if context[-1] == self.poisoned:
            return np.full(VOCAB, np.nan, dtype=np.float32)
        rng = np.random.default_rng(zlib.crc32(bytes(context), self.salt))
        logits = rng.normal(0, 1.2, VOCAB).astype(np.float32)
        logits[(context[-1] * 5 + (context[-2] if len(context) > 1 else 0)) % VOCAB] += 4.0
        return logits

    def cancel(self) -> None:
        self.cancelled = True

    def clear_cancel(self) -> None:
        self.cancelled = False

    @property
    def progress(self) -> int:
        return self.num_runs

    def close(self) -> None:
        pass


class Engine:
    """A runtime driven step by step; the clock says that every step takes as long as the last one."""

    def __init__(
        self,
        speculator: Speculator | None,
        *,
        pages: int = 200,
        sequences: int = 8,
        tokens: int = 64,
        cache: bool = True,
        draft_model: int | None = None,
        length: int = 0,
    ) -> None:
        self.executor = ContextExecutor(pages, tokens)
        self.drafting = None
        if draft_model is not None:
            self.drafting = ContextExecutor(pages, ModelSpeculator.most_tokens(tokens, sequences), draft_model)
            speculator = ModelSpeculator(self.drafting, VOCAB, length=length)
        self.runtime = Runtime.build(
            self.executor,
            num_pages=pages,
            max_num_sequence=sequences,
            max_tokens=tokens,
            active_vocab_size=VOCAB,
            prefix_cache=cache,
            speculator=speculator,
            draft_executor=self.drafting,
        )
        clock = itertools.count()
        self.recorder = MetricsRecorder(clock=lambda: float(next(clock)))
        self.events: dict[Request, list[tuple[Any, ...]]] = {}

    def add(self, request: Request) -> Request:
        self.recorder.accepted(request, self.recorder.now())
        self.runtime.scheduler.add(request)
        self.events[request] = []
        return request

    def step(self) -> list[TokenEvent]:
        scheduler = self.runtime.scheduler
        chunks = self.runtime.schedule(self.recorder)
        try:
            events = self.runtime.run(chunks, self.recorder)
        except StepCancelledError:
            assert not self.executor.cancelled, "the same cancel would cut another step short"
            events = []
        for event in events:
            self.events[event.request].append(event[1:])
        scheduler.check()
        for node in scheduler.pool._walk(scheduler.pool._root):
            self.check_cached(node)
        return events

    def check_cached(self, node: CachedPage) -> None:
        for executor in (self.executor, self.drafting):
            if executor is not None:
                assert tuple(executor.slots[node.page * 16 : node.page * 16 + 16]) == node.tokens

    def run(self, *requests: Request) -> list[list[tuple[Any, ...]]]:
        for request in requests:
            self.add(request)
        while self.runtime.scheduler.has_work:
            self.step()
        self.recorder.publish(self.runtime.scheduler)
        pool = self.runtime.scheduler.pool
        assert pool.num_available == pool.num_pages
        return [self.events[request] for request in requests]


def make(prompt: list[int], max_tokens: int = 40, stop: tuple[int, ...] = (), **sampling: Any) -> Request:
    params = SamplingParams(**{"temperature": 0.0, **sampling})
    logprobs = 2 if max_tokens % 2 else None
    return Request("r", prompt, max_tokens, frozenset(stop), params, RecordingOutput(), num_logprobs=logprobs)


SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "seed": 5},
    {"temperature": 1.0, "top_p": 0.8, "seed": 6, "choice": 1},
    {"temperature": 0.0, "repetition_penalty": 1.2},
    {"temperature": 0.6, "seed": 7, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    {"temperature": 0.9, "seed": 8, "logit_bias": ((3, 2.0), (4, -50.0))},
]

requests = st.builds(
    dict,
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=70),
    max_tokens=st.integers(1, 60),
    stop=st.sampled_from([(), (), (11,), (0, 7)]),
    sampling=st.sampled_from(SAMPLINGS),
)


def build(one: dict[str, Any]) -> Request:
    return make(one["prompt"], one["max_tokens"], one["stop"], **one["sampling"])


@settings(max_examples=150, deadline=None)
@given(
    wanted=st.lists(requests, min_size=1, max_size=8),
    length=st.integers(0, 6),
    draft_model=st.sampled_from([None, 0, 1]),
    pages=st.integers(9, 24),
    tokens=st.integers(8, 64),
    cache=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_same_tokens_with_and_without_drafts(
    wanted: list[dict[str, Any]],
    length: int,
    draft_model: int | None,
    pages: int,
    tokens: int,
    cache: bool,
    seed: int,
) -> None:
    """With few pages, so that requests are preempted; with steps cut short; with requests aborted in the middle."""
    alone = [Engine(None, cache=False).run(build(one))[0] for one in wanted]
    chance = random.Random(seed)  # noqa: S311
    engine = Engine(
        NgramSpeculator(length), pages=pages, tokens=tokens, cache=cache, draft_model=draft_model, length=length
    )
    pending = [build(one) for one in wanted]
    added = list(pending)
    aborted: set[Request] = set()
    while pending or engine.runtime.scheduler.has_work:
        if pending and (chance.random() < 0.3 or not engine.runtime.scheduler.has_work):
            engine.add(pending.pop(0))
        if chance.random() < 0.1:
            engine.runtime.cancel()
        engine.step()
        if chance.random() < 0.03:
            victim = chance.choice(added)
            aborted.add(victim)
            engine.runtime.scheduler.remove(victim)
    assert engine.runtime.scheduler.pool.num_available == pages
    for request, expected in zip(added, alone, strict=True):
        events = engine.events.get(request, [])
        assert events == expected[: len(events)]
        assert request in aborted or len(events) == len(expected)


@pytest.mark.parametrize("length", [0, 1, 5])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_accepted_drafts_save_steps(length: int, sampling: dict[str, Any]) -> None:
    prompt = [1, 2, 3, 4, 5, 6] * 6
    plain, drafting = Engine(None), Engine(NgramSpeculator(length))
    assert drafting.run(make(prompt, 300, **sampling)) == plain.run(make(prompt, 300, **sampling))
    metrics = drafting.recorder.snapshot(EngineState.READY)
    assert metrics.accepted_draft_tokens_sum > 20
    assert drafting.executor.num_runs < 280 < plain.executor.num_runs
    assert metrics.num_steps == drafting.executor.num_runs
    assert metrics.decode_tokens_sum == 299
    assert metrics.completion_tokens_sum == 300
    assert metrics.num_steps + metrics.accepted_draft_tokens_sum == 300
    assert 0.0 < metrics.draft_acceptance_rate <= 1.0
    assert metrics.spec_decode["accept_prob"]["accept_prob{step=0}"] == 1.0
    assert metrics.spec_decode["draft_count"][1] == metrics.num_drafts
    assert "windlass_spec_decode_num_accepted_tokens_total" in metrics.prometheus_text()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_model_that_drafts_for_itself_is_always_right(sampling: dict[str, Any]) -> None:
    counts = any(name.endswith("penalty") for name in sampling)
    plain, drafting = Engine(None), Engine(None, draft_model=0, length=4)
    prompts = [[i, 3, 4, 5, 6] * 5 for i in range(3)]
    wanted = [make(prompt, 201, **sampling) for prompt in prompts]
    assert drafting.run(*wanted) == plain.run(*[make(prompt, 201, **sampling) for prompt in prompts])
    metrics = drafting.recorder.snapshot(EngineState.READY)
    # The drafts of penalized requests do not know of each other.
    assert metrics.draft_acceptance_rate > 0.4 if counts else metrics.draft_acceptance_rate == 1.0
    assert counts or metrics.num_steps < 50
    # What one left in the prefix cache serves the next one, in both caches.
    again = make(prompts[0], 201, **sampling)
    assert drafting.run(again) == plain.run(make(prompts[0], 201, **sampling))
    assert again.num_reused >= 16
    drafting.recorder.publish(drafting.runtime.scheduler)
    rate = drafting.recorder.snapshot(EngineState.READY).draft_acceptance_rate
    assert counts or rate == 1.0


def test_the_draft_model_computes_no_cached_prefix_again() -> None:
    prefix = [1, 2, 3, 4, 5, 6] * 6
    engine = Engine(None, draft_model=0, length=2)
    engine.run(make(prefix, 2))
    engine.add(make([*prefix, 7]))
    engine.add(make([*prefix, 8]))
    assert engine.drafting is not None
    before = engine.drafting.num_tokens
    engine.step()
    assert engine.drafting.num_tokens - before <= 2 * (5 + 2)


def test_another_model_drafts_as_long_as_that_pays() -> None:
    """Adaptive, and its guesses are often wrong; the clock of this engine finds every step equally dear."""
    prompts = [[i, 3, 4, 5, 6] * 5 for i in range(3)]
    plain, drafting = Engine(None), Engine(None, draft_model=1)
    expected = plain.run(*[make(prompt, 201) for prompt in prompts])
    assert drafting.run(*[make(prompt, 201) for prompt in prompts]) == expected
    assert 0.1 < drafting.recorder.snapshot(EngineState.READY).draft_acceptance_rate < 1.0
    assert drafting.executor.num_runs < plain.executor.num_runs


def test_a_draft_model_that_gives_no_numbers_only_drafts_nothing() -> None:
    plain, drafting = Engine(None), Engine(None, draft_model=0, length=3)
    assert drafting.drafting is not None
    drafting.drafting.poisoned = 5
    prompt = [1, 2, 3, 4, 5, 6]
    assert drafting.run(make(prompt, 90)) == plain.run(make(prompt, 90))


def test_drafts_take_no_page_from_anybody() -> None:
    """Two requests whose tokens just fit: without room for a draft nothing is drafted, and nobody is preempted."""
    engine = Engine(NgramSpeculator(6), pages=4, cache=False)
    first, second = make([1, 2] * 7, 19), make([3, 4] * 7, 19)
    assert engine.run(first, second) == [Engine(None).run(make([t, t + 1] * 7, 19))[0] for t in (1, 3)]
    engine.recorder.publish(engine.runtime.scheduler)
    assert engine.recorder.snapshot(EngineState.READY).num_preemptions == 0


def test_logits_behind_a_wrong_draft_are_nobodys_business() -> None:
    executor = ContextExecutor(8, 64)
    executor.poisoned = 9
    request = make([1, 2, 3])
    rows = [[1, 2, 3], [1, 2, 3, 9], [1, 2, 3, 9, 4]]
    logits = np.stack([executor.logits(row) for row in rows])
    sampler = Sampler(VOCAB)
    (tokens,) = sampler.sample(logits, [Chunk(request, 3, (9, 4))])
    assert len(tokens) == 1
    with pytest.raises(FloatingPointError):
        sampler.sample(logits[1:], [Chunk(request, 3, (4,))])
