"""From logits to tokens in C++: exact, and without a sort of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from windlass.late_numpy import np
from windlass.native import _core
from windlass.native.executor import NativeExecutor
from windlass.program.executor import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SEED_MASK = (1 << 64) - 1
_MOST_TOKENS = (1 << 31) - 1


class SequenceSampler:
    """How the tokens of one sequence are drawn, and which tokens it has so far. For one thread at a time.

    In this order: the bias and the penalties change the logits; a mask, if there is one, takes tokens out; the
    temperature turns logits into weights; ``top_k`` leaves the likeliest tokens, ``top_p`` of these the fewest
    likeliest that hold this share of their weight, ``min_p`` those at least so likely relative to the likeliest. Among
    equals the smaller id is the likelier. ``temperature`` 0 takes the likeliest. The noise is a function of ``seed``,
    ``choice`` and the position alone.
    """

    __slots__ = ("_counts_tokens", "_num_noted", "core")

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: Sequence[tuple[int, float]] = (),
        seed: int = 0,
        choice: int = 0,
    ) -> None:
        """Keep the parameters.

        Raises:
            ValueError: one of them is out of range.
        """
        self.core = _core.SequenceSampler(
            temperature=temperature,
            top_p=top_p,
            top_k=min(top_k, _MOST_TOKENS),
            min_p=min_p,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            repetition_penalty=repetition_penalty,
            logit_bias=logit_bias,
            seed=seed & _SEED_MASK,
            choice=choice,
        )
        self._counts_tokens = presence_penalty != 0.0 or frequency_penalty != 0.0 or repetition_penalty != 1.0
        self._num_noted = 0

    @property
    def counts_tokens(self) -> bool:
        """True when a draw depends on the tokens before it, which ``follow`` counts, and not on the logits alone."""
        return self._counts_tokens

    def follow(self, token_ids: Sequence[int], num_prompt: int) -> None:
        """Count the tokens that came since the last call, for the penalties.

        Args:
            token_ids: the sequence so far, of which the first ``num_prompt`` are the prompt. It only ever grows.
        """
        if not self._counts_tokens:
            return
        if self._num_noted < num_prompt:
            self.core.note_prompt(token_ids[self._num_noted : num_prompt])
            self._num_noted = num_prompt
        self.core.note_generated(token_ids[self._num_noted :])
        self._num_noted = len(token_ids)

    def follow_one(self, token_id: int) -> None:
        """Count one more generated token, after all those that ``follow`` was given."""
        if self._counts_tokens:
            self.core.note_generated([token_id])
            self._num_noted += 1


class SamplingRow(NamedTuple):
    """One draw: the token at ``position`` of ``sequence``."""

    sequence: SequenceSampler
    position: int
    num_logprobs: int | None = None
    """How many of the likeliest tokens to report with the drawn one; None works no logprobs out."""
    mask: NDArray[np.int32] | None = None
    """Allowed tokens: bit ``j % 32`` of word ``j // 32`` is 1 when token j may be drawn. None allows all."""


class TokenLogprobs(NamedTuple):
    """How likely a token was: logarithms of the model's own probabilities, before bias, mask and temperature."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest token ids and their logprobs, likeliest first."""


class SampledToken(NamedTuple):
    """A drawn token; without logprobs where its row asks for none."""

    token_id: int
    logprobs: TokenLogprobs | None


class RowSampler:
    """Draws tokens for the rows of a step. For one thread at a time.

    Ids from ``active_vocab_size`` on, the padding of the vocabulary, are never drawn. A row's result depends on that
    row alone; for one build and kernel table it is always the same.
    """

    def __init__(
        self, active_vocab_size: int, *, kernels: str | None = None, executor: NativeExecutor | None = None
    ) -> None:
        """Choose a kernel table (``cpu_info().kernels``), by default the best one.

        Args:
            active_vocab_size: ids below this can be drawn.
            kernels: the table's name.
            executor: lends its threads, between its steps, when there are several rows.

        Raises:
            ValueError: there is no such table, or ``active_vocab_size`` is not positive.
        """
        self._core = _core.RowSampler(active_vocab_size=active_vocab_size, kernels=kernels or "")
        self._executor = None if executor is None else executor.core

    def sample_rows(self, logits: Rows, rows: Sequence[SamplingRow]) -> list[SampledToken]:
        """Draw one token per row; the GIL is released meanwhile.

        Args:
            logits: float32 [rows, vocabulary], contiguous; -inf is a token that cannot be drawn.

        Raises:
            FloatingPointError: a row holds a NaN, or its largest logit is infinite.
            ValueError: a mask is too short or allows no token; the logits have the wrong shape.
        """
        drawn = self._core.sample_rows(
            logits,
            [
                (row.sequence.core, row.position, -1 if row.num_logprobs is None else row.num_logprobs, row.mask)
                for row in rows
            ],
            self._executor,
        )
        return [
            SampledToken(token_id, None if row.num_logprobs is None else TokenLogprobs(logprob, tuple(top)))
            for row, (token_id, logprob, top) in zip(rows, drawn, strict=True)
        ]


def uniform(seed: int, choice: int, position: int) -> float:
    """Return the noise of one token, in [0, 1): a pure function of its key, so that no history can change it.

    Each part of the key goes through the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    return _core.uniform(seed & _SEED_MASK, choice, position)
