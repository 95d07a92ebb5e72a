"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from windlass.engine.request import SamplingParams, TokenLogprobs

_MASK = (1 << 64) - 1
_HEAD = 1024


def uniform(seed: int, choice: int, position: int) -> float:
    """Return the noise of one token, in [0, 1): a pure function of its key, so that no history can change it.

    Each part of the key goes through the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    x = 0
    for part in (seed, choice, position):
        x = (x + part + 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
    return (x >> 11) / float(1 << 53)


class Sampler:
    """Draws tokens. Ids from ``active_vocab_size`` on, the padding of the vocabulary, are never drawn."""

    def __init__(self, active_vocab_size: int) -> None:
        self.active_vocab_size = active_vocab_size

    def sample(
        self, logits: NDArray[np.float32], params: SamplingParams, token_ids: Sequence[int], num_prompt: int
    ) -> int:
        """Return the next token.

        Args:
            logits: float32 [vocab], finite.
            params: the bias, the penalties, then temperature, then top_k, then top_p, then min_p shape the draw.
            token_ids: the sequence so far, of which the first ``num_prompt`` are the prompt.

        Raises:
            FloatingPointError: the logits hold a NaN or an infinity.
        """
        position = len(token_ids)
        row = logits[: self.active_vocab_size]
        if params.logit_bias:
            row = _biased(row, params)
        if params.penalizes:
            row = _penalized(row, params, np.asarray(token_ids), num_prompt)
        best = int(row.argmax())
        if not np.isfinite(row[best]):
            raise FloatingPointError(f"the model's logits at position {position} are not finite")
        if params.temperature == 0.0 or params.top_k == 1:
            return best
        weights = np.exp((row - row[best]).astype(np.float64) / params.temperature)
        noise = uniform(params.seed, params.choice, position)
        if params.top_p >= 1.0 and params.top_k == 0 and params.min_p == 0.0:
            return _draw(weights, noise)
        ids = _most_likely(weights, params)
        return int(ids[_draw(weights[ids], noise)])


def token_logprobs(logits: NDArray[np.float32], token_id: int, count: int) -> TokenLogprobs:
    """Return the logprob of ``token_id`` and of the ``count`` likeliest tokens, from logits [vocab]."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    top = _sorted_head(values, count) if count else ()
    return TokenLogprobs(float(values[token_id]), tuple((int(i), float(values[i])) for i in top))


def _biased(row: NDArray[np.float32], params: SamplingParams) -> NDArray[np.float32]:
    row = row.copy()
    for token_id, bias in params.logit_bias:
        if token_id < row.size:
            row[token_id] += np.float32(bias)
    return row


def _penalized(
    row: NDArray[np.float32], params: SamplingParams, token_ids: NDArray[np.int_], num_prompt: int
) -> NDArray[np.float32]:
    """Return the logits after the penalties."""
    row = row.copy()
    if params.repetition_penalty != 1.0:
        seen = np.unique(token_ids)
        seen = seen[seen < row.size]
        values = row[seen]
        row[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    generated, counts = np.unique(token_ids[num_prompt:], return_counts=True)
    row[generated] -= params.presence_penalty + params.frequency_penalty * counts.astype(np.float32)
    return row


def _draw(weights: NDArray[np.float64], noise: float) -> int:
    """Invert the distribution function: index i with probability weights[i] / sum(weights)."""
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, noise * cumulative[-1], side="right"))
    return min(index, int(np.flatnonzero(weights)[-1]))


def _most_likely(weights: NDArray[np.float64], params: SamplingParams) -> NDArray[np.intp]:
    """Return the ids that top_k, top_p and min_p leave, most likely first, ties by id."""
    size = weights.size
    limit = min(params.top_k, size) if params.top_k else size
    head = min(size, max(_HEAD, limit if limit < size else 0))
    ids = _sorted_head(weights, head)
    total = float(weights.sum())
    needed = params.top_p * total
    if head < limit and float(weights[ids].sum()) < needed:
        ids = _sorted_head(weights, size)
    ids = ids[:limit]
    kept = weights[ids]
    if params.top_p < 1.0:
        allowed = params.top_p * float(kept.sum()) if limit < size else needed
        ids = ids[: int(np.searchsorted(np.cumsum(kept), allowed, side="left")) + 1]
    if params.min_p > 0.0:
        ids = ids[weights[ids] >= params.min_p]
    return ids


def _sorted_head(weights: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Return the ``count`` largest, in falling order; among equals the smaller id comes first and is kept."""
    if count >= weights.size:
        return np.argsort(-weights, kind="stable")
    threshold = np.partition(weights, weights.size - count)[weights.size - count]
    candidates = np.flatnonzero(weights >= threshold)
    return candidates[np.argsort(-weights[candidates], kind="stable")][:count]
