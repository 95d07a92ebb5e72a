"""The scheduler alone: who runs, in what chunks, and what happens when pages run out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.fakes import make_request
from windlass.engine.adapters import Adapter, Adapters
from windlass.engine.batch import make_batch
from windlass.engine.pages import PagePool
from windlass.engine.request import Request
from windlass.engine.scheduler import Scheduler
from windlass.errors import InvalidRequestError


class Packed:
    """An adapter that adds nothing."""

    nbytes = 1

    def close(self) -> None:
        self.nbytes = 0


def scheduler(pages: int = 100, sequences: int = 4, tokens: int = 32, *, cache: bool = True) -> Scheduler:
    return Scheduler(PagePool(pages, prefix_cache=cache), max_num_sequence=sequences, max_tokens=tokens)


def run(s: Scheduler, budget: int = 1000) -> dict[str, int]:
    """One step: what ran, by name; a request whose chunk completes gets its next token."""
    chunks = s.schedule(budget)
    for chunk in chunks:
        completes = chunk.completes
        s.advance(chunk.request, chunk.num_tokens)
        if completes:
            chunk.request.token_ids.append(0)
    s.check()
    assert all(not r.pages and not r.cached for r in s.waiting)
    return {chunk.request.request_id: chunk.num_tokens for chunk in chunks}


def add(s: Scheduler, name: str, prompt: int, start: int = 0) -> Request:
    request, _ = make_request(name, prompt=prompt, start=start)
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
    assert s.pool.num_available < 100
    s.remove(b)
    s.remove(a)
    s.remove(a)
    assert s.pool.num_available == 100
    assert not s.has_work


def test_a_waiting_request_does_not_displace_a_running_one() -> None:
    s = scheduler(pages=4, tokens=64)
    add(s, "a", 40)
    run(s)
    add(s, "b", 20, start=7)
    assert run(s) == {"a": 1}
    assert [r.request_id for r in s.waiting] == ["b"]


def test_the_youngest_yields_when_pages_run_out_and_is_computed_anew() -> None:
    s = scheduler(pages=3, tokens=64, cache=False)
    a, b = add(s, "a", 15), add(s, "b", 15, start=7)
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


def test_a_prefix_is_computed_once() -> None:
    s = scheduler(tokens=64)
    a = add(s, "a", 40)
    assert run(s) == {"a": 40}
    b = add(s, "b", 45)
    assert run(s) == {"a": 1, "b": 45 - 32}
    assert b.num_reused == 32
    assert a.pages[:2] == b.pages[:2]
    assert a.pages[2] != b.pages[2]
    s.remove(a)
    s.remove(b)
    assert s.pool.num_available == 100
    assert s.pool.num_cached == 2
    c = add(s, "c", 33)
    assert run(s) == {"c": 1}, "the last token is computed even when all before it is cached"
    assert c.num_reused == 32


def test_requests_that_begin_alike_wait_for_the_first() -> None:
    s = scheduler(tokens=32)
    for name in "abc":
        add(s, name, 70)
    add(s, "other", 5, start=9)
    assert run(s, budget=30) == {"a": 30}
    assert run(s, budget=32) == {"a": 32}
    assert run(s, budget=32) == {"a": 8, "other": 5}, "the fourth page is not full before this step"
    assert run(s, budget=32) == {"a": 1, "other": 1, "b": 6, "c": 6}
    assert {r.request_id: r.num_reused for r in s.running} == {"a": 0, "b": 64, "c": 64, "other": 0}


def test_adapters_neither_share_prefixes_nor_wait_for_those_of_others() -> None:
    s = scheduler(sequences=6, tokens=200)
    adapters = [None, Adapter("x", "", Packed()), Adapter("x", "", Packed())]
    requests = []
    for number, adapter in enumerate(adapters):
        for copy in "ab":
            request = add(s, f"{number}{copy}", 40)
            request.adapter = adapter
            requests.append(request)
    assert run(s) == {"0a": 40, "1a": 40, "2a": 40}
    assert run(s) == {"0a": 1, "1a": 1, "2a": 1, "0b": 8, "1b": 8, "2b": 8}
    assert [request.num_reused for request in requests] == [0, 32, 0, 32, 0, 32]
    assert s.pool.num_cached == 6
    for request in requests:
        s.remove(request)
    s.check()
    s.pool.give_back(s.pool.take(100) or [])
    assert (s.pool.num_cached, s.pool.num_free) == (0, 100), "first pages of adapters are evicted like others"


def test_the_batch_says_who_has_which_adapter() -> None:
    s = scheduler(tokens=100)
    first, second = Adapter("x", "", Packed()), Adapter("y", "", Packed())
    for name, start, adapter in (("a", 0, first), ("b", 10, None), ("c", 20, second), ("d", 30, first)):
        add(s, name, 5, start).adapter = adapter
    chunks = s.schedule(1000)
    assert make_batch(chunks).adapters == (first.packed, None, second.packed, first.packed)
    assert make_batch([chunk for chunk in chunks if chunk.request.adapter is None]).adapters == ()


def test_adapters_are_found_until_they_are_retired_and_closed_with_the_model() -> None:
    adapters = Adapters()
    one, two, three = (Adapter(name, "", Packed()) for name in ("one", "two", "three"))
    assert len({one.number, two.number, three.number, 0}) == 4
    assert adapters.add(one)
    assert adapters.add(two)
    assert adapters.retire("one") is one
    assert one.retired
    assert adapters.all == (two,)
    assert adapters.find("two") is two
    for call in (adapters.find, adapters.retire):
        with pytest.raises(InvalidRequestError, match="there is no adapter 'one'; loaded are two"):
            call("one")
    adapters.close()
    assert (one.packed.nbytes, two.packed.nbytes, adapters.all) == (0, 0, ())
    assert not adapters.add(three), "the model is gone"
    assert three.packed.nbytes == 0


def test_the_prefix_unused_for_longest_is_evicted_first() -> None:
    s = scheduler(pages=6, tokens=64, sequences=1)
    for name, start in (("a", 0), ("b", 20), ("a again", 0)):
        request = add(s, name, 33, start)
        run(s)
        s.remove(request)
        s.check()
    assert s.pool.num_cached == 4
    big = add(s, "big", 60, start=40)
    run(s)
    s.remove(big)
    kept = add(s, "a once more", 33, start=0)
    run(s)
    assert kept.num_reused == 32, "the path used last is still there"
    gone = add(s, "b once more", 33, start=20)
    s.remove(kept)
    run(s)
    assert gone.num_reused < 32


def test_a_preempted_request_finds_its_pages_again_when_nobody_took_them() -> None:
    s = scheduler(pages=5, tokens=64)
    a, b = add(s, "a", 33), add(s, "b", 20, start=9)
    assert run(s) == {"a": 33, "b": 20}
    s._preempt(b)
    assert run(s) == {"a": 1, "b": 21 - 16}
    s.remove(a)
    assert run(s) == {"b": 1}


def test_equal_pages_computed_twice_are_merged() -> None:
    s = scheduler(tokens=64)
    a, b = add(s, "a", 8), add(s, "b", 8)
    run(s)
    for request in (a, b):
        request.token_ids[8:] = range(8, 17)
    run(s)
    assert a.pages[0] == b.pages[0]
    assert s.pool.num_cached == 1
    s.remove(a)
    assert run(s) == {"b": 1}
    s.remove(b)
    assert s.pool.num_available == 100


def test_without_the_cache_nothing_is_kept() -> None:
    s = scheduler(tokens=64, cache=False)
    a, b = add(s, "a", 40), add(s, "b", 20)
    assert run(s) == {"a": 40, "b": 20}
    s.remove(a)
    s.remove(b)
    assert (s.pool.num_free, s.pool.num_cached) == (100, 0)


def test_page_accounts_are_checked() -> None:
    pool = PagePool(4)
    pages = pool.take(3)
    assert pages is not None
    assert pool.take(2) is None
    with pytest.raises(RuntimeError, match="do not add up"):
        pool.check(private=2)
    pool.give_back(pages)
    pool.check(private=0)
    pool.give_back(pages)
    with pytest.raises(RuntimeError, match="do not add up"):
        pool.check(private=-3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90), st.integers(0, 3)), min_size=1, max_size=40))
def test_any_history_keeps_the_accounts(history: list[tuple[int, int, int]]) -> None:
    """Requests with few different beginnings, run, removed and preempted in any order, on few pages."""
    s = scheduler(pages=7, sequences=3, tokens=40)
    for action, length, start in history:
        if action <= 1:
            add(s, f"r{length}", length, start)
        elif action == 2 and s.running:
            s.remove(s.running[length % len(s.running)])
        elif s.running:
            s._preempt(s.running[-1])
        run(s, budget=length)
        for request in [r for r in s.running if len(r.token_ids) >= 100]:
            s.remove(request)
    for _ in range(400):
        if not s.has_work:
            break
        run(s)
        for request in [r for r in s.running if r.num_generated >= 3]:
            s.remove(request)
    assert not s.has_work, "every request gets through"
    assert s.pool.num_available == 7
    s.pool.clear()
    assert s.pool.num_free == 7
