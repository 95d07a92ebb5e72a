"""The scheduler alone: who runs, in what chunks, and what happens when pages run out."""

from __future__ import annotations

import pytest

from support.fakes import make_request
from windlass.engine.pages import PagePool
from windlass.engine.request import Request
from windlass.engine.scheduler import Scheduler


def scheduler(pages: int = 100, sequences: int = 4, tokens: int = 32) -> Scheduler:
    return Scheduler(PagePool(pages), max_num_sequence=sequences, max_tokens=tokens)


def run(s: Scheduler, budget: int = 1000) -> dict[str, int]:
    """One step: what ran, by name; a request whose chunk completes gets its next token."""
    chunks = s.schedule(budget)
    for chunk in chunks:
        completes = chunk.completes
        chunk.request.num_computed += chunk.num_tokens
        if completes:
            chunk.request.token_ids.append(0)
    held = sum(len(r.pages) for r in s.running)
    s.pool.check(held)
    assert all(not r.pages for r in s.waiting)
    return {chunk.request.request_id: chunk.num_tokens for chunk in chunks}


def add(s: Scheduler, name: str, prompt: int) -> Request:
    request, _ = make_request(name, prompt=prompt)
    s.add(request)
    return request


def test_prompts_are_prefilled_in_chunks_then_decoded() -> None:
    s = scheduler(tokens=32)
    add(s, "a", 70)
    assert [run(s) for _ in range(4)] == [{"a": 32}, {"a": 32}, {"a": 6}, {"a": 1}]


def test_decoding_goes_on_beside_a_prefill() -> None:
    s = scheduler(tokens=32)
    add(s, "a", 4)
    assert run(s) == {"a": 4}
    add(s, "b", 40)
    assert run(s) == {"a": 1, "b": 31}
    assert run(s) == {"a": 1, "b": 9}
    assert run(s) == {"a": 1, "b": 1}


def test_the_prefill_budget_limits_only_prefill() -> None:
    s = scheduler(tokens=32)
    add(s, "a", 4)
    run(s)
    add(s, "b", 40)
    assert run(s, budget=5) == {"a": 1, "b": 5}
    assert run(s, budget=0) == {"a": 1, "b": 1}, "a prefill always advances"


def test_more_sequences_than_fit_wait_in_order() -> None:
    s = scheduler(sequences=2)
    for name in "abc":
        add(s, name, 3)
    assert run(s) == {"a": 3, "b": 3}
    assert [r.request_id for r in s.waiting] == ["c"]
    s.remove(s.running[0])
    assert run(s) == {"b": 1, "c": 3}


def test_removing_frees_pages_wherever_the_request_is() -> None:
    s = scheduler(sequences=1)
    a, b = add(s, "a", 40), add(s, "b", 3)
    run(s)
    assert s.pool.num_free < 100
    s.remove(b)
    s.remove(a)
    s.remove(a)
    assert s.pool.num_free == 100
    assert not s.has_work


def test_a_waiting_request_does_not_displace_a_running_one() -> None:
    s = scheduler(pages=4, tokens=64)
    add(s, "a", 40)
    run(s)
    add(s, "b", 20)
    assert run(s) == {"a": 1}
    assert [r.request_id for r in s.waiting] == ["b"]


def test_the_youngest_yields_when_pages_run_out_and_is_computed_anew() -> None:
    s = scheduler(pages=3, tokens=64)
    a, b = add(s, "a", 15), add(s, "b", 15)
    assert run(s) == {"a": 15, "b": 15}
    assert run(s) == {"a": 1, "b": 1}
    # Both need a second page now, and one is left: the older one gets it, then the younger one has to yield.
    assert run(s) == {"a": 1}
    assert b.num_computed == 0
    assert not b.pages
    assert list(s.waiting) == [b]
    s.remove(a)
    assert run(s) == {"b": 17}, "its generated tokens are prefilled with its prompt"


def test_an_only_request_may_take_every_page() -> None:
    s = scheduler(pages=2, tokens=64)
    a = add(s, "a", 30)
    assert run(s) == {"a": 30}
    assert run(s) == {"a": 1}
    assert run(s) == {"a": 1}
    assert len(a.pages) == 2


def test_page_accounts_are_checked() -> None:
    pool = PagePool(4)
    pages = pool.take(3)
    assert pages is not None
    assert pool.take(2) is None
    with pytest.raises(RuntimeError, match="do not add up"):
        pool.check(held=2)
    pool.give_back(list(pages))
    pool.give_back(list(pages))
    with pytest.raises(RuntimeError, match="do not add up"):
        pool.check(held=-3)
