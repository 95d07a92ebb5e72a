"""Batch work without a server: one call with a list of prompts, and one call each from many threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from support.lifecycle import LIMIT, Started, core_of, wait_for
from windlass import EngineConfig, MLCEngine
from windlass.errors import ContextLengthError, InvalidRequestError

PROMPTS = [
    *("red is", "green is", "blue is", "gold is", "big is", "small is", "old is", "new is"),
    *("warm is", "cold is", "fast is", "slow is", "high is", "low is", "dry is", "wet is"),
]
ENDLESS: dict[str, Any] = {"max_tokens": 40, "debug_config": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def engine() -> Iterator[MLCEngine]:
    # The steps are counted, so none may bring several tokens.
    config = EngineConfig(
        verbose=False, max_num_sequence=16, max_single_sequence_length=256, speculative_mode="disable"
    )
    with MLCEngine(engine_config=config) as one:
        yield one


def run_held(engine: MLCEngine, num_calls: int, *calls: Any) -> tuple[list[Any], dict[str, Any]]:
    """Start ``calls``, each in a thread, on an engine that waits for ``num_calls``; return results and counts."""
    engine.reset()
    go_on = threading.Event()
    core_of(engine)._inbox.put(lambda: bool(go_on.wait(LIMIT)))
    threads = [Started(call) for call in calls]
    assert wait_for(lambda: core_of(engine).num_open == num_calls)
    go_on.set()
    results = [thread.result() for thread in threads]
    metrics = engine.metrics()
    names = ("num_steps", "prefill_tokens_sum", "decode_tokens_sum", "num_preemptions", "num_cancelled_steps")
    decodes = {size: count for size, (count, _) in metrics.decode_steps_by_batch_size.items()}
    return results, {**{name: metrics[name] for name in names}, "decodes": decodes}


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 7}], ids=["greedy", "sampled"])
def test_calls_of_many_threads_run_in_the_same_batches_as_one_call(engine: MLCEngine, sampling: dict[str, Any]) -> None:
    create = engine.completions.create

    def ask(prompt: str) -> Any:
        return lambda: create(prompt=prompt, **sampling, **ENDLESS)

    [batched], together = run_held(engine, 1, lambda: create(prompt=PROMPTS, **sampling, **ENDLESS))
    single, apart = run_held(engine, len(PROMPTS), *map(ask, PROMPTS))
    assert apart == together
    # One step takes all prompts in, and each of the others draws a token for every request.
    assert apart["decodes"] == {16: 39}
    assert apart["num_steps"] == 40
    assert [choice.text for choice in batched.choices] == [response.choices[0].text for response in single]


def test_a_list_of_prompts_is_answered_in_order(engine: MLCEngine) -> None:
    create = engine.completions.create
    settings: dict[str, Any] = {"n": 2, "seed": 3, "temperature": 1.0, "max_tokens": 6, "echo": True}
    prompts: list[str | list[int]] = ["red is", [300, 301, 302], "The capital of France"]
    alone = [create(prompt=prompt, **settings) for prompt in prompts]
    answer = create(prompt=prompts, **settings)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == [c.text for one in alone for c in one.choices]
    assert answer.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert answer.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    texts = [""] * 6
    for chunk in create(prompt=prompts, stream=True, **settings):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in answer.choices]


def test_prompts_of_a_list_differ_where_no_seed_ties_them(engine: MLCEngine) -> None:
    answer = engine.completions.create(prompt=["red is"] * 8, temperature=2.0, **ENDLESS)
    assert len({choice.text for choice in answer.choices}) == 8


def test_a_cached_prefix_is_counted_for_every_prompt(engine: MLCEngine) -> None:
    prompts = [list(range(300, 340)), list(range(400, 440))]
    engine.completions.create(prompt=prompts, max_tokens=1)
    again = engine.completions.create(prompt=prompts, max_tokens=1, n=2)
    assert again.usage.prompt_tokens_details.cached_tokens == 2 * 32


def test_one_bad_prompt_refuses_the_list(engine: MLCEngine) -> None:
    for bad, error in ((["red", [5] * 300], ContextLengthError), (["red", ""], InvalidRequestError)):
        with pytest.raises(error) as caught:
            engine.completions.create(prompt=bad)
        assert caught.value.param == "prompt"
    assert core_of(engine).num_open == 0
