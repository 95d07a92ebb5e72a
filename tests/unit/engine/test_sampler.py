"""What the engine draws: against a slow oracle, and by distribution. Its native half has tests of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.fakes import RecordingOutput
from windlass.engine.request import Request, SamplingParams
from windlass.engine.sampler import Sampler
from windlass.engine.scheduler import Chunk
from windlass.native.sampling import uniform


def next_token(size: int, logits: np.ndarray, params: SamplingParams, token_ids: list[int], num_prompt: int) -> int:
    """Draw the token after ``token_ids``, of which the first are the prompt."""
    request = Request("r", token_ids[:num_prompt], 1000, frozenset(), params, RecordingOutput())
    request.token_ids += token_ids[num_prompt:]
    ((token,),) = Sampler(size).sample(logits[None], [Chunk(request, 1)])
    return token.token_id


def draw(size: int, logits: np.ndarray, params: SamplingParams, position: int = 0) -> int:
    """Draw the token after ``position`` others."""
    return next_token(size, logits, params, [0] * position, 0)


def allowed(logits: np.ndarray, params: SamplingParams) -> dict[int, float]:
    """The distribution that the parameters leave, worked out the slow way."""
    weights = np.exp((logits.astype(np.float64) - float(logits.max())) / params.temperature)
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    if params.top_k:
        order = order[: params.top_k]
    if params.top_p < 1.0:
        total, kept, mass = sum(weights[i] for i in order), [], 0.0
        for i in order:
            kept.append(i)
            mass += weights[i]
            if mass >= params.top_p * total:
                break
        order = kept
    order = [i for i in order if weights[i] >= params.min_p]
    total = sum(weights[i] for i in order)
    return {i: weights[i] / total for i in order}


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 3000),
    temperature=st.floats(0.2, 2.0),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 2, 40, 5000]),
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
    seed=st.integers(0, 2**63 - 1),
)
def test_only_allowed_tokens_are_drawn(
    size: int, temperature: float, top_p: float, top_k: int, min_p: float, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, size).astype(np.float32)
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed)
    possible = allowed(logits, params)
    for position in range(20):
        assert draw(size, logits, params, position) in possible


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_frequencies_follow_the_distribution(top_p: float) -> None:
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0], dtype=np.float32)
    params = SamplingParams(temperature=0.9, top_p=top_p, seed=7)
    draws = 20_000
    counts = np.zeros(6)
    for position in range(draws):
        counts[draw(6, logits, params, position)] += 1
    for token, probability in allowed(logits, params).items():
        deviation = np.sqrt(probability * (1 - probability) * draws)
        assert abs(counts[token] - probability * draws) < 4.5 * deviation + 1
    assert counts.sum() == draws


def test_greedy_takes_the_first_of_the_largest_and_never_the_padding() -> None:
    logits = np.array([0.0, 3.0, 3.0, 9.0], dtype=np.float32)
    assert draw(3, logits, SamplingParams(temperature=0.0)) == 1
    assert draw(4, logits, SamplingParams(temperature=0.0)) == 3


def test_the_noise_depends_on_seed_choice_and_position_only() -> None:
    values = {uniform(seed, choice, position) for seed in range(10) for choice in range(10) for position in range(100)}
    assert len(values) == 10_000
    assert all(0.0 <= value < 1.0 for value in values)
    assert uniform(3, 1, 9) == uniform(3, 1, 9)
    assert abs(np.mean([uniform(5, 0, i) for i in range(20_000)]) - 0.5) < 0.01


def test_broken_logits_are_an_error() -> None:
    with pytest.raises(FloatingPointError, match="position 5"):
        draw(2, np.array([np.nan, 1.0], dtype=np.float32), SamplingParams(), 5)


def test_tiny_temperature_does_not_overflow() -> None:
    logits = np.array([0.0, 100.0, -100.0], dtype=np.float32)
    assert draw(3, logits, SamplingParams(temperature=1e-6, seed=1)) == 1


def test_penalties() -> None:
    logits = np.array([4.0, 3.9, -1.0, 0.0], dtype=np.float32)

    def greedy(generated: list[int], **penalties: float) -> int:
        params = SamplingParams(temperature=0.0, **penalties)
        return next_token(4, logits, params, [1, *generated], 1)

    assert greedy([0]) == 0
    assert greedy([0], presence_penalty=0.2) == 1
    assert greedy([0, 0, 1], presence_penalty=0.2) == 0
    assert greedy([0, 0, 1], frequency_penalty=0.2) == 1
    assert greedy([3], repetition_penalty=1.1) == 0, "the prompt's token 1 counts, token 0 does not"
    assert greedy([0], repetition_penalty=1.1) == 0, "both are divided alike"
    assert greedy([], frequency_penalty=2.0) == 0, "the prompt does not count"
    only_bad = np.array([-1.0, -1.05], dtype=np.float32)
    params = SamplingParams(temperature=0.0, repetition_penalty=1.2)
    assert next_token(2, only_bad, params, [0], 1) == 1, "negative logits get more negative"
