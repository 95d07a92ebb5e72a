"""The sampler in numpy: slow, with a full sort, and right by reading. What the native one is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from windlass.native.sampling import SequenceSampler

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Parameters:
    """What ``SequenceSampler`` takes."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = field(default=())
    seed: int = 0
    choice: int = 0

    def sequence(self) -> SequenceSampler:
        """The same for the native sampler."""
        return SequenceSampler(**vars(self))


def noise(seed: int, choice: int, position: int) -> float:
    """The uniform noise of one token, by SplitMix64."""
    x = 0
    for part in (seed, choice, position):
        x = (x + part + 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
    return (x >> 11) / float(1 << 53)


def sample(
    logits: NDArray[np.float32],
    params: Parameters,
    token_ids: Sequence[int],
    num_prompt: int,
    mask: NDArray[np.int32] | None = None,
) -> int:
    """The next token after ``token_ids``, from the logits [active vocabulary]."""
    row = logits.copy()
    for token_id, bias in params.logit_bias:
        if token_id < row.size:
            row[token_id] += np.float32(bias)
    row = _penalized(row, params, np.asarray(token_ids, dtype=np.int64), num_prompt)
    if mask is not None:
        row[~allowed_tokens(mask, row.size)] = -np.inf
    best = int(row.argmax())
    if not np.isfinite(row[best]):
        raise FloatingPointError("not finite")
    if params.temperature == 0.0 or params.top_k == 1:
        return best
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((row - row[best]).astype(np.float64) / params.temperature)
    uniform = noise(params.seed, params.choice, len(token_ids))
    if params.top_p >= 1.0 and params.top_k == 0 and params.min_p == 0.0:
        return _draw(weights, uniform)
    ids = kept_tokens(weights, params)
    return int(ids[_draw(weights[ids], uniform)])


def allowed_tokens(mask: NDArray[np.int32], size: int) -> NDArray[np.bool_]:
    """The bits of a mask, one per token."""
    return np.unpackbits(mask.view(np.uint8), bitorder="little")[:size].astype(bool)


def kept_tokens(weights: NDArray[np.float64], params: Parameters) -> NDArray[np.intp]:
    """The ids that top_k, then top_p, then min_p leave, most likely first, ties by id."""
    ids = np.argsort(-weights, kind="stable")
    total = float(weights.sum())
    if params.top_k and params.top_k < weights.size:
        ids = ids[: params.top_k]
        total = float(weights[ids].sum())
    if params.top_p < 1.0:
        ids = ids[: int(np.searchsorted(np.cumsum(weights[ids]), params.top_p * total, side="left")) + 1]
    return ids[weights[ids] >= params.min_p]


def logprobs(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logarithm of each token's probability."""
    largest = logits.max()
    # As in a draw, the weights come from differences that are rounded to float32.
    total = np.exp((logits - largest).astype(np.float64)).sum()
    return logits.astype(np.float64) - (float(largest) + np.log(total))


def _penalized(
    row: NDArray[np.float32], params: Parameters, token_ids: NDArray[np.int64], num_prompt: int
) -> NDArray[np.float32]:
    if params.repetition_penalty != 1.0:
        seen = np.unique(token_ids)
        seen = seen[seen < row.size]
        values = row[seen]
        row[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    generated, counts = np.unique(token_ids[num_prompt:], return_counts=True)
    row[generated] -= params.presence_penalty + params.frequency_penalty * counts.astype(np.float32)
    return row


def _draw(weights: NDArray[np.float64], uniform: float) -> int:
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(index, int(np.flatnonzero(weights)[-1]))
