"""How many guesses of a draft model are run: few where they are wrong, as many as pay where they are right."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from support.fakes import make_request
from windlass.engine import draft_model
from windlass.engine.draft_model import ModelSpeculator
from windlass.engine.pages import PagePool
from windlass.engine.request import Request
from windlass.engine.scheduler import Scheduler
from windlass.program.executor import Batch

VOCAB = 16
STEP, MORE, DRAFT = 0.020, 0.03, 0.085
"""Seconds of a decode step, what each more token adds to it, and what a step of the draft model takes, as parts."""


def answer(position: int) -> int:
    return position * 5 % 7


class Machine:
    """Requests whose tokens are known, a draft model that is right with some probability, and a clock.

    ``right`` is told the number of a request and the position of the token.
    """

    def __init__(self, count: int = 1, *, length: int = 0, right: Callable[[int, int], float], seed: int = 0) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)  # noqa: S311
        self.right = right
        self.scheduler = Scheduler(PagePool(1000), max_num_sequence=64, max_tokens=512)
        self.speculator = ModelSpeculator(self, VOCAB, length=length)  # type: ignore[arg-type]
        self.requests: list[Request] = []
        self.drafted = [0] * count
        self.hiccups: list[float] = []
        self.add(count)

    def add(self, count: int) -> None:
        """New requests, prefilled; those before them have ended."""
        for request in self.requests:
            self.scheduler.remove(request)
        self.requests = []
        for number in range(count):
            request, _ = make_request(f"r{number}", prompt=30, start=number, max_tokens=10_000)
            self.scheduler.add(request)
            self.requests.append(request)
        self.pages = {}
        self.step()

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """The draft model."""
        self.now += DRAFT * STEP * (1 + MORE * (len(batch.token_ids) - 1))
        logits = np.zeros((len(batch.logit_rows), VOCAB), dtype=np.float32)
        for number, row in enumerate(batch.logit_rows):
            sequence = int(np.searchsorted(batch.token_starts, row, side="right")) - 1
            request = self.pages[int(batch.page_ids[batch.page_starts[sequence]])]
            position = int(batch.positions[row]) + 1
            right = self.chance.random() < self.right(request, position)
            logits[number, answer(position) if right else 15] = 1.0
        return logits

    def step(self) -> None:
        """One step of all requests."""
        began = self.now
        chunks = self.scheduler.schedule(512)
        self.pages = {chunk.request.pages[0]: self.requests.index(chunk.request) for chunk in chunks}
        chunks = self.speculator.draft(chunks, self.scheduler)
        self.scheduler.check()
        tokens = sum(chunk.num_tokens + len(chunk.drafts) for chunk in chunks)
        prefill = any(chunk.num_tokens > 1 for chunk in chunks)
        self.now += STEP * (1 + (0.2 if prefill else MORE) * (tokens - 1))
        if self.hiccups and not prefill:
            self.now += self.hiccups.pop(0)
        for number, chunk in enumerate(chunks):
            self.scheduler.advance(chunk.request, chunk.num_tokens)
            self.drafted[number] += len(chunk.drafts)
            for draft in chunk.drafts:
                chunk.request.token_ids.append(answer(len(chunk.request.token_ids)))
                if draft != chunk.request.token_ids[-1]:
                    break
                self.scheduler.advance(chunk.request, 1)
            else:
                chunk.request.token_ids.append(answer(len(chunk.request.token_ids)))
        self.speculator.learn(chunks, self.now - began)

    def seconds_for(self, tokens: int) -> float:
        """Decode until the first request has so many more."""
        began, request = self.now, self.requests[0]
        wanted = len(request.token_ids) + tokens
        while len(request.token_ids) < wanted:
            self.step()
        # The last step may have brought more.
        return (self.now - began) * tokens / (tokens + len(request.token_ids) - wanted)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """The speculator reads the clock of the machine made last, the only one to be used from then on."""
    machines: list[Machine] = []
    original = Machine.__init__

    def init(self: Machine, *arguments: object, **named: object) -> None:
        machines.append(self)
        original(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Machine, "__init__", init)
    monkeypatch.setattr(draft_model, "perf_counter", lambda: machines[-1].now)
    return machines


def always(right: float) -> Callable[[int, int], float]:
    return lambda _request, _position: right


def speedup(machine: Machine, tokens: int = 256, turns: int = 4) -> float:
    """Against steps of one token; of the answers to ``turns`` requests."""
    seconds = 0.0
    for _ in range(turns):
        seconds += machine.seconds_for(tokens)
        machine.add(1)
    return tokens * turns * STEP / seconds


@pytest.mark.parametrize("right", [0.0, 0.05])
def test_guesses_that_are_wrong_cost_little(right: float) -> None:
    assert speedup(Machine(right=always(right)), tokens=96, turns=1) > 0.96
    assert speedup(Machine(right=always(right)), tokens=256, turns=8) > 0.975


@pytest.mark.parametrize(
    ("right", "lengths"), [(0.3, (1, 2)), (0.5, (1, 2, 3)), (0.7, (3, 4)), (0.9, (6, 8)), (1.0, (12,))]
)
def test_as_many_guesses_as_pay(right: float, lengths: tuple[int, ...]) -> None:
    best = max(speedup(Machine(length=length, right=always(right))) for length in lengths)
    found = [speedup(Machine(right=always(right), seed=seed)) for seed in range(3)]
    assert statistics.mean(found) > 0.9 * best


def test_a_good_text_after_bad_ones() -> None:
    good = speedup(Machine(right=always(0.9)), tokens=128, turns=1)
    machine = Machine(right=always(0.0))
    speedup(machine)
    machine.right = always(0.9)
    assert speedup(machine, tokens=128, turns=1) > 0.75 * good


def test_a_text_that_becomes_easy_or_hard() -> None:
    """Within one answer; the drafts follow."""
    machine = Machine(right=lambda _request, position: 0.9 if position // 256 % 2 else 0.0)
    machine.seconds_for(226)
    assert machine.seconds_for(256) < 0.6 * 256 * STEP
    assert machine.seconds_for(256) < 1.05 * 256 * STEP
    assert machine.seconds_for(256) < 0.6 * 256 * STEP


def test_each_sequence_has_as_many_as_pay_for_it() -> None:
    machine = Machine(3, right=lambda request, _position: (0.9, 0.0, 0.5)[request])
    machine.seconds_for(400)
    tokens = [request.num_generated for request in machine.requests]
    good, bad, fair = (drafted / count for drafted, count in zip(machine.drafted, tokens, strict=True))
    assert bad < 0.15 < 0.3 < fair < good
    assert tokens[0] > 1.5 * tokens[1]
    # Nobody is slowed much for the sake of others.
    assert tokens[1] > 0.7 * machine.now / (STEP * (1 + MORE * 2))


@pytest.mark.parametrize("late", range(6))
def test_one_slow_step_does_not_end_it(late: int) -> None:
    usual = speedup(Machine(right=always(0.8)), tokens=128, turns=1)
    machine = Machine(right=always(0.8))
    machine.hiccups = [*[0.0] * late, 0.1]
    assert 128 * STEP / (machine.seconds_for(128) - 0.1) > 0.8 * usual


def test_many_sequences_are_not_slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each more token costs as much as the first, there are no drafts but to try."""
    monkeypatch.setitem(globals(), "MORE", 1.0)
    machine = Machine(8, right=always(0.9))
    machine.seconds_for(200)
    assert sum(machine.drafted) < 0.1 * 8 * 200


def test_the_count_never_exceeds_what_a_request_can_use() -> None:
    machine = Machine(right=always(1.0))
    machine.seconds_for(60)
    machine.requests[0].max_tokens = machine.requests[0].num_generated + 2
    before = machine.drafted[0]
    machine.step()
    assert machine.drafted[0] - before <= 1
