"""The native sampler against the numpy oracle, token by token, and by distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support import sampling_oracle
from support.native import KERNELS, LittleModel
from support.sampling_oracle import Parameters, allowed_tokens, kept_tokens
from windlass.native import NativeExecutor
from windlass.native.sampling import RowSampler, SampledToken, SamplingRow, SequenceSampler, uniform


def draw(
    logits: NDArray[np.float32],
    params: Parameters,
    *,
    position: int = 0,
    active: int | None = None,
    num_logprobs: int | None = None,
    mask: NDArray[np.int32] | None = None,
    kernels: str | None = None,
) -> SampledToken:
    """Draw one token."""
    row = SamplingRow(params.sequence(), position, num_logprobs, mask)
    return RowSampler(active or len(logits), kernels=kernels).sample_rows(logits[None], [row])[0]


def random_logits(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """One of several kinds of rows: smooth, peaked, flat, with many ties, with tokens that are impossible."""
    kind = rng.integers(6)
    logits = rng.normal(0, [3, 10, 0.01, 3, 3, 30][kind], size).astype(np.float32)
    if kind == 3:
        logits = np.round(logits)
    if kind == 4:
        logits[rng.random(size) < 0.7] = -np.inf
        logits[rng.integers(size)] = 1.0
    return logits


def random_parameters(rng: np.random.Generator, size: int) -> Parameters:
    values: dict[str, Any] = {
        "temperature": rng.choice([0.0, 0.01, 0.7, 1.0, 1.7]),
        "top_p": rng.choice([1.0, 1.0, 0.0, 0.1, 0.5, 0.9, 0.999]),
        "top_k": rng.choice([0, 0, 1, 2, 40, 700, size, size + 5]),
        "min_p": rng.choice([0.0, 0.0, 1e-300, 0.02, 0.5, 1.0]),
        "seed": rng.integers(2**63),
        "choice": rng.integers(4),
    }
    if rng.random() < 0.5:
        values |= {"presence_penalty": rng.choice([0.0, 0.6, -1.1]), "frequency_penalty": rng.choice([0.0, 0.3, 1.5])}
        values["repetition_penalty"] = rng.choice([1.0, 1.2, 0.7])
    plain = {name: value.item() for name, value in values.items()}
    if rng.random() < 0.3:
        ids = rng.integers(0, size + 3, 4)
        plain["logit_bias"] = tuple((int(i), float(rng.choice([-100.0, -1.5, 0.25, 7.0]))) for i in ids)
    return Parameters(**plain)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 64, 65, 500, 513, 3000, 50_001])
def test_every_token_is_the_oracles(kernels: str, size: int) -> None:
    rng = np.random.default_rng(size)
    sampler = RowSampler(size, kernels=kernels)
    for _ in range(150 if size < 10_000 else 25):
        rows = int(rng.integers(1, 4))
        # Wider than what may be drawn, and the padding is the most likely.
        logits = np.full((rows, size + 7), 1e4, dtype=np.float32)
        draws, expected = [], []
        for r in range(rows):
            logits[r, :size] = random_logits(rng, size)
            params = random_parameters(rng, size)
            token_ids = rng.integers(0, size, int(rng.integers(0, 30))).tolist()
            num_prompt = int(rng.integers(0, len(token_ids) + 1))
            mask = None
            if rng.random() < 0.3:
                mask = rng.integers(-(2**31), 2**31, (size + 31) // 32).astype(np.int32)
                mask &= rng.choice(np.array([0, -1, -1], dtype=np.int32), mask.size)
                possible = int(np.isfinite(logits[r, :size]).argmax())
                mask.view(np.uint8)[possible // 8] |= np.uint8(1 << possible % 8)
            sequence = params.sequence()
            sequence.follow(token_ids, num_prompt)
            draws.append(SamplingRow(sequence, len(token_ids), None, mask))
            expected.append(sampling_oracle.sample(logits[r, :size], params, token_ids, num_prompt, mask))
        assert [token.token_id for token in sampler.sample_rows(logits, draws)] == expected


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"top_k": 50}, {"top_p": 0.8}, {"min_p": 0.3}, {"top_k": 30, "top_p": 0.9}, {"temperature": 0.5}],
    ids=str,
)
def test_frequencies_follow_the_distribution(kernels: str, changes: dict[str, Any]) -> None:
    """Pearson's chi-square over 20,000 draws with fixed noise."""
    size, draws = 200, 20_000
    logits = np.random.default_rng(1).normal(0, 1, size).astype(np.float32)
    params = Parameters(**{"seed": 11, **changes})
    weights = np.exp((logits - logits.max()).astype(np.float64) / params.temperature)
    kept = kept_tokens(weights, params)
    sampler, sequence = RowSampler(size, kernels=kernels), params.sequence()
    rows = np.broadcast_to(logits, (1000, size)).copy()
    counts = np.zeros(size)
    for begin in range(0, draws, 1000):
        for token in sampler.sample_rows(rows, [SamplingRow(sequence, begin + i) for i in range(1000)]):
            counts[token.token_id] += 1
    expected = draws * weights[kept] / weights[kept].sum()
    assert counts[kept].sum() == draws, "only kept tokens are drawn"
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum()
    freedom = kept.size - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("size", [1, 5, 64, 1000, 20_000])
def test_logprobs(kernels: str, size: int) -> None:
    rng = np.random.default_rng(size)
    for count in [0, 1, 5, 20, size + 1]:
        logits = random_logits(rng, size)
        active = int(rng.integers(1, size + 1))
        logits[0] = 2.0
        params = Parameters(temperature=0.5, seed=3, logit_bias=((0, 5.0),))
        token = draw(logits, params, active=active, num_logprobs=count, kernels=kernels)
        values = sampling_oracle.logprobs(logits)
        assert token.logprobs is not None
        assert token.logprobs.logprob == pytest.approx(values[token.token_id], abs=1e-11)
        # Logits whose distance to the largest rounds to the same number are equals.
        order = np.argsort(logits.max() - logits, kind="stable")[:count]
        assert [token_id for token_id, _ in token.logprobs.top] == order.tolist()
        assert [logprob for _, logprob in token.logprobs.top] == pytest.approx(values[order].tolist(), abs=1e-11)
    assert draw(logits, Parameters(), kernels=kernels).logprobs is None


def test_the_noise_is_the_oracles_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    keys = [
        (0, 0, 0),
        (2**64 - 1, 2**32, 2**32),
        *((int(s), int(c), int(p)) for s, c, p in rng.integers(2**62, size=(500, 3))),
    ]
    for seed, choice, position in keys:
        assert uniform(seed, choice, position) == sampling_oracle.noise(seed, choice, position)
    assert uniform(-5, 0, 1) == sampling_oracle.noise(2**64 - 5, 0, 1)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.nan])
@pytest.mark.parametrize("size", [1, 40, 64, 200])
def test_broken_logits_are_an_error(kernels: str, bad: float, size: int) -> None:
    for place in {0, size // 2, size - 1}:
        logits = np.zeros(size, dtype=np.float32)
        logits[place] = bad
        mask = np.zeros((size + 31) // 32, dtype=np.int32)
        mask[0] = 1
        for params in (Parameters(), Parameters(temperature=0.0), Parameters(top_p=0.5)):
            for given in (None, mask):
                with pytest.raises(FloatingPointError, match="position 5"):
                    draw(logits, params, position=5, mask=given, kernels=kernels)
    with pytest.raises(FloatingPointError):
        draw(np.full(size, -np.inf, dtype=np.float32), Parameters(), kernels=kernels)


def test_a_mask_that_allows_nothing_or_is_too_short_is_an_error() -> None:
    logits = np.zeros(40, dtype=np.float32)
    with pytest.raises(ValueError, match="allows no token"):
        draw(logits, Parameters(), mask=np.zeros(2, dtype=np.int32))
    beyond = np.array([0, 1 << 8], dtype=np.int32)
    with pytest.raises(ValueError, match="allows no token"):
        draw(logits, Parameters(), mask=beyond)
    with pytest.raises(ValueError, match="a bit for each"):
        draw(logits, Parameters(), mask=np.zeros(1, dtype=np.int32))


def test_a_mask_of_one_token_draws_it() -> None:
    logits = np.random.default_rng(2).normal(0, 3, 1000).astype(np.float32)
    for token in range(0, 1000, 37):
        mask = np.zeros(32, dtype=np.int32)
        mask.view(np.uint32)[token // 32] = 1 << token % 32
        assert allowed_tokens(mask, 1000).sum() == 1
        for params in (Parameters(), Parameters(temperature=0.0), Parameters(top_k=9), Parameters(min_p=0.1)):
            assert draw(logits, params, mask=mask).token_id == token


def test_the_penalties_follow_a_growing_sequence() -> None:
    logits = np.random.default_rng(3).normal(0, 1, 50).astype(np.float32)
    params = Parameters(presence_penalty=0.4, frequency_penalty=0.7, repetition_penalty=1.3, temperature=0.8, seed=9)
    token_ids = [7, 7, 49, 3]
    grown = params.sequence()
    sampler = RowSampler(50)
    for _ in range(200):
        grown.follow(token_ids, 4)
        at_once = params.sequence()
        at_once.follow(token_ids, 4)
        rows = [SamplingRow(sequence, len(token_ids)) for sequence in (grown, at_once)]
        tokens = {token.token_id for token in sampler.sample_rows(np.stack([logits, logits]), rows)}
        assert tokens == {sampling_oracle.sample(logits, params, token_ids, 4)}
        token_ids.append(tokens.pop())


def test_rows_do_not_influence_one_another() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (16, 3000)).astype(np.float32)
    params = [random_parameters(rng, 3000) for _ in range(16)]
    rows = [SamplingRow(p.sequence(), 3, 2) for p in params]
    together = RowSampler(3000).sample_rows(logits, rows)
    alone = [RowSampler(3000).sample_rows(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    backwards = RowSampler(3000).sample_rows(logits[::-1].copy(), rows[::-1])[::-1]
    model = LittleModel()
    executor = NativeExecutor(
        model.program(), model.weights(), num_pages=1, max_tokens=1, max_positions=1, num_threads=3
    )
    shared = [RowSampler(3000, executor=executor).sample_rows(logits, rows) for _ in range(20)]
    executor.close()
    assert together == alone == backwards
    assert all(rows_drawn == together for rows_drawn in shared)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 1.1},
        {"top_p": -0.1},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": float("nan")},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, float("nan")),)},
    ],
    ids=str,
)
def test_bad_parameters_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        SequenceSampler(**changes)


def test_bad_calls_are_refused() -> None:
    sampler, sequence = RowSampler(10), SequenceSampler()
    for shape in [(2, 10), (1, 9), (0, 10)]:
        with pytest.raises(ValueError, match="logits must be"):
            sampler.sample_rows(np.zeros(shape, dtype=np.float32), [SamplingRow(sequence, 0)])
    with pytest.raises(ValueError, match="active_vocab_size"):
        RowSampler(0)
    with pytest.raises(ValueError, match="not available"):
        RowSampler(10, kernels="abacus")
    assert sampler.sample_rows(np.zeros((0, 10), dtype=np.float32), []) == []
