"""Guesses from a sequence's own tokens, against a search by hand; what steps cost; how many drafts pay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.fakes import make_request
from windlass.engine.costs import FORGET_FIRST_STEPS, FORGET_STEPS, StepCosts
from windlass.engine.ngram import INDEX_TOKENS, LONGEST_MATCH, MAX_CANDIDATES, PRIOR, NgramDrafter
from windlass.engine.pages import PagePool
from windlass.engine.request import Request
from windlass.engine.scheduler import Scheduler
from windlass.engine.speculation import LONGEST_DRAFT, NgramSpeculator


def search(tokens: list[int]) -> tuple[int, int]:
    """The length and the end of the longest, then most recent, of the last earlier places that read alike."""
    places = [end for end in range(2, len(tokens)) if tokens[end - 2 : end] == tokens[-2:]][-MAX_CANDIDATES:]
    best = (0, 0)
    for end in reversed(places):
        length = 2
        while length < min(LONGEST_MATCH, end) and tokens[end - length - 1] == tokens[-length - 1]:
            length += 1
        best = max(best, (length, end), key=lambda found: found[0])
    return best


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), max_size=12))
def test_the_longest_and_then_the_most_recent_match_is_found_as_the_sequence_grows(parts: list[list[int]]) -> None:
    tokens: list[int] = []
    drafter = NgramDrafter(tokens)
    for part in parts:
        tokens += part
        length, end = search(tokens)
        assert drafter.find() == length
        if length:
            endless = list(tokens)
            while len(endless) < end + 20:
                endless.append(endless[len(endless) - len(tokens) + end])
            assert drafter.guesses(20) == endless[end : end + 20]
        drafter.learn(list(PRIOR))


def test_a_long_prompt_is_indexed_in_parts() -> None:
    tokens = [7, 8, 9] + [0, 1] * INDEX_TOKENS + [7, 8]
    drafter = NgramDrafter(tokens)
    assert [drafter.find() for _ in range(3)] == [0, 0, 2]
    assert drafter.guesses(1) == [9]


def test_guesses_are_judged_by_length_of_the_match_without_being_drafted() -> None:
    tokens = [1, 2, 3, 4, 5, 1, 2]
    drafter = NgramDrafter(tokens)
    typical = list(PRIOR)
    assert drafter.find() == 2
    before = drafter.chances(1)
    tokens += [3, 4, 6]  # right with two and three tokens known, wrong with four
    drafter.learn(typical)
    assert typical[2] > PRIOR[2]
    assert typical[3] > PRIOR[3]
    assert typical[4] < PRIOR[4]
    assert typical[5:] == list(PRIOR[5:])
    tokens += [1, 2]
    assert drafter.find() == 2
    assert drafter.chances(1) > before
    assert drafter.chances(9) == sorted(drafter.chances(9), reverse=True)


def test_costs_lie_between_what_was_measured() -> None:
    costs = StepCosts()
    assert costs.ratios(1, 4) is None
    costs.note(1, 0.5)
    (_, cheap) = costs.ratios(1, 2) or ()
    assert 1.0 < cheap < 1.1, "what was not tried seems cheap"
    costs.note(5, 1.5)
    assert costs.ratios(1, 6) == pytest.approx([1.0, 1.125, 1.5, 2.125, 3.0, 3.5, 4.0])
    assert len(costs.ratios(1, 20) or ()) == 10, "no step is twice as large as the largest that was tried"
    costs.note(3, 0.1)
    assert costs.ratios(1, 4) == pytest.approx([1.0, 1.0, 1.0, 1.5, 3.0]), "more tokens never cost less"
    assert costs.ratios(2, 4) is None


def test_a_slow_step_counts_little_and_old_ones_not_at_all() -> None:
    costs = StepCosts()
    costs.note(1, 1.0)
    costs.note(2, 1000.0)
    costs.note(2, 1.0)
    assert costs.ratios(1, 1) == pytest.approx([1.0, 1.0]), "also when it is the first"
    costs.note(2, 1000.0)
    assert costs.ratios(1, 1) == pytest.approx([1.0, 1.05])
    costs.note(1, 1.0)
    for _ in range(FORGET_STEPS):
        costs.note(2, 1.0)
    assert costs.ratios(1, 1) is None, "the first is forgotten, and measured anew by a step without drafts"


def test_a_first_measurement_is_soon_made_again() -> None:
    costs = StepCosts()
    costs.note(4, 100.0)
    for _ in range(FORGET_FIRST_STEPS):
        costs.note(1, 1.0)
    assert costs.seconds(4) is None
    assert costs.near(4) == 1.0
    costs.note(4, 2.0)
    for _ in range(FORGET_STEPS - 1):
        costs.note(1, 1.0)
    assert costs.seconds(4) == 2.0
    assert costs.near(3) == 2.0
    costs.note(1, 1.0)
    assert costs.seconds(4) is None


class Decoding:
    """Requests that decode with a speculator, on a machine on which a step takes ``cost(tokens)`` seconds."""

    def __init__(self, count: int, cost: object, length: int = 0) -> None:
        self.scheduler = Scheduler(PagePool(1000), max_num_sequence=64, max_tokens=512)
        self.speculator = NgramSpeculator(length)
        self.cost = cost
        self.requests: list[Request] = []
        for number in range(count):
            request, _ = make_request(f"r{number}", prompt=30, start=number, max_tokens=10_000)
            self.scheduler.add(request)
            self.requests.append(request)
        for chunk in self.scheduler.schedule(512):
            self.scheduler.advance(chunk.request, chunk.num_tokens)
            chunk.request.token_ids.append(0)

    def step(self, *answers: list[int]) -> list[int]:
        """Each request goes on with its answer, as far as it is drafted, and at least by one token."""
        chunks = self.speculator.draft(self.scheduler.schedule(512), self.scheduler)
        self.scheduler.check()
        for chunk, answer in zip(chunks, answers, strict=True):
            right = 0
            while right < len(chunk.drafts) and chunk.drafts[right] == answer[right]:
                right += 1
            chunk.request.token_ids += answer[: right + 1]
            self.scheduler.advance(chunk.request, right + 1)
        drafts = [len(chunk.drafts) for chunk in chunks]
        self.speculator.learn(chunks, self.cost(len(drafts) + sum(drafts)))  # type: ignore[operator]
        return drafts


def repeating(request: Request, period: int = 5) -> list[int]:
    """A long answer that goes round."""
    return [(len(request.token_ids) + i) % period for i in range(LONGEST_DRAFT + 1)]


def fresh(request: Request) -> list[int]:
    """An answer of pairs that occur now and then, with another token after them each time."""
    at = len(request.token_ids)
    return [1 if i % 3 == 0 else 2 if i % 3 == 1 else 1000 + i for i in range(at, at + LONGEST_DRAFT + 1)]


def free(tokens: int) -> float:
    return 1.0 + 0.02 * tokens


def dear(tokens: int) -> float:
    return float(tokens)


def test_repetition_is_drafted_at_full_length_when_tokens_are_cheap() -> None:
    decoding = Decoding(1, free)
    drafts = [decoding.step(repeating(decoding.requests[0])) for _ in range(60)]
    assert drafts[0] == [0]
    assert drafts[-1] == [LONGEST_DRAFT]


def test_nothing_is_drafted_where_a_token_costs_a_step() -> None:
    decoding = Decoding(1, dear)
    drafts = [decoding.step(repeating(decoding.requests[0])) for _ in range(200)]
    assert sum(count > 0 for (count,) in drafts) <= 4, "only to see what it costs"


def test_wrong_guesses_end_the_drafts_and_right_ones_bring_them_back() -> None:
    decoding = Decoding(1, free)
    request = decoding.requests[0]
    drafts = [decoding.step(fresh(request)) for _ in range(300)]
    assert not any(count for (count,) in drafts[100:])
    drafts = [decoding.step(repeating(request)) for _ in range(100)]
    assert drafts[-1] == [LONGEST_DRAFT]


def test_sequences_share_what_a_step_can_bear() -> None:
    def knee(tokens: int) -> float:  # eight tokens for the price of one, and each further one as much as those
        return 1.0 + max(0, tokens - 8)

    for count in (1, 2, 4, 8):
        decoding = Decoding(count, knee)
        for _ in range(100):
            drafts = decoding.step(*[repeating(request) for request in decoding.requests])
        assert 6 <= sum(drafts) + count <= 8


def test_one_sequence_is_not_sped_up_at_the_expense_of_others() -> None:
    def steep(tokens: int) -> float:
        return 1.0 + 0.1 * tokens

    alone = Decoding(1, steep)
    for _ in range(100):
        (most,) = alone.step(repeating(alone.requests[0]))
    both = Decoding(2, steep)
    for _ in range(100):
        drafts = both.step(repeating(both.requests[0]), fresh(both.requests[1]))
    assert most == LONGEST_DRAFT
    assert drafts == [1, 0], "so that the other is slowed by a tenth"


@pytest.mark.parametrize("length", [1, 4, 7])
def test_a_fixed_number_is_drafted_whenever_there_is_a_match(length: int) -> None:
    decoding = Decoding(2, dear, length)
    for _ in range(30):
        decoding.step(*[repeating(request) for request in decoding.requests])
    assert decoding.step(*[repeating(request) for request in decoding.requests]) == [length] * 2


def test_drafts_end_before_a_stop_token_and_the_last_token() -> None:
    decoding = Decoding(1, free, 8)
    request = decoding.requests[0]
    for _ in range(5):
        decoding.step(repeating(request))
    (answer,) = [repeating(request)]
    request.stop_token_ids = frozenset({answer[3]})
    assert decoding.step(answer) == [3]
    request.stop_token_ids = frozenset()
    request.max_tokens = request.num_generated + 3
    assert decoding.step(repeating(request)) == [2]
