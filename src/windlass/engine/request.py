"""A request as the core sees it: token ids in, token ids out."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from windlass.engine.acceptance import Acceptance
from windlass.engine.adapters import Adapter
from windlass.engine.ngram import NgramDrafter
from windlass.engine.pages import CachedPage
from windlass.late_numpy import np
from windlass.native.sampling import SequenceSampler, TokenLogprobs

if TYPE_CHECKING:
    from numpy.typing import NDArray


class FinishReason(enum.Enum):
    """Why a request ended well; the values are OpenAI's."""

    STOP = "stop"
    LENGTH = "length"


class Output(Protocol):
    """Where a request's tokens go. The stream-back thread calls it; nothing in it may block.

    Exactly one of ``finish`` and ``fail`` has an effect, once: the first. ``fail`` may come from any thread, also from
    a finalizer, so it takes no lock.
    """

    def put(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """Take the next token. A stop token is not put."""
        ...

    def finish(self, reason: FinishReason) -> None:
        """The request ended well; every token was put."""
        ...

    def fail(self, error: BaseException) -> None:
        """The request ended with ``error``."""
        ...


class _SpentOutput:
    """Takes the place of an output that has ended, so that a call that is kept does not keep the model's text side."""

    def put(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """Ignore what comes after the ending."""

    def finish(self, reason: FinishReason) -> None:
        """Ignore it: the first ending counts."""

    def fail(self, error: BaseException) -> None:
        """Ignore it: the first ending counts."""


SPENT = _SpentOutput()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. ``temperature`` 0 is greedy; ``seed`` and ``choice`` key the noise.

    The penalties lower the logits of tokens that stand in the answer already: ``presence_penalty`` once each,
    ``frequency_penalty`` for each time; ``repetition_penalty`` divides positive logits and multiplies negative ones, of
    the prompt's tokens too (Keskar et al., 2019).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids and what is added to their logits."""
    seed: int = 0
    choice: int = 0


@dataclass(eq=False, slots=True)
class Request:
    """One sequence to generate. What stands after ``output`` belongs to the engine thread.

    Invariant: ``num_computed`` positions are in the KV cache, in ``pages``, of which the first ones are ``cached``: in
    the prefix tree, shared and never written again. ``token_ids`` is the prompt and what was generated; while the
    request runs, ``num_computed < len(token_ids)``.
    """

    request_id: str
    prompt_ids: list[int]
    max_tokens: int
    stop_token_ids: frozenset[int]
    sampling: SamplingParams
    output: Output
    num_logprobs: int | None = None
    """How many of the likeliest tokens to report beside each token; None reports no logprobs at all."""
    deadline: float | None = None
    """When the call times out, on the clock of ``time.monotonic``."""
    pin_prompt: bool = False
    """Keep the prompt's full pages in the prefix cache until it is cleared."""
    adapter: Adapter | None = None
    """What is added to the model, the same for all requests of a call."""

    token_ids: list[int] = field(init=False)
    num_computed: int = field(init=False, default=0)
    pages: list[int] = field(init=False, default_factory=list)
    cached: list[CachedPage] = field(init=False, default_factory=list)
    num_reused: int = field(init=False, default=0)
    """Prompt tokens that were found in the prefix cache when the request was first admitted."""
    ended: bool = field(init=False, default=False)
    sequence: SequenceSampler = field(init=False)
    """Draws its tokens, and knows which of them are penalized."""
    drafter: NgramDrafter | None = field(init=False, default=None)
    """Guesses its next tokens, once the speculator has asked for them."""
    pooled: NDArray[np.float32] | None = field(init=False, default=None)
    """What a model for embeddings has made of the tokens computed; the embedding once the request has finished."""
    num_draft_computed: int = field(init=False, default=0)
    """Positions that are in the draft model's KV cache too, if there is a draft model."""
    acceptance: Acceptance | None = field(init=False, default=None)
    """How good the draft model's guesses are, once there may be any."""

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_ids)
        self.sequence = SequenceSampler(**{name: getattr(self.sampling, name) for name in SamplingParams.__slots__})

    @property
    def space(self) -> int:
        """Whose keys and values its own can be shared with: those of the same adapter, or of none."""
        return 0 if self.adapter is None else self.adapter.number

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - len(self.prompt_ids)

    @property
    def num_pending(self) -> int:
        """Tokens that are known but not yet in the KV cache: 1 while decoding, more during prefill."""
        return len(self.token_ids) - self.num_computed
