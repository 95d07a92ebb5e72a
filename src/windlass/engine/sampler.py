"""From logits to the next tokens of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from windlass.engine.request import Request
from windlass.native import NativeExecutor
from windlass.native.sampling import RowSampler, SampledToken, SamplingRow
from windlass.program.executor import Executor


class Sampler:
    """Draws tokens. Ids from ``active_vocab_size`` on, the padding of the vocabulary, are never drawn.

    With a native executor several rows are shared among its threads.
    """

    def __init__(self, active_vocab_size: int, kernels: str | None = None, executor: Executor | None = None) -> None:
        threads = executor if isinstance(executor, NativeExecutor) else None
        self._rows = RowSampler(active_vocab_size, kernels=kernels, executor=threads)

    def sample(self, logits: NDArray[np.float32], requests: Sequence[Request]) -> list[SampledToken]:
        """Return the next token of each of ``requests``, from logits [len(requests), vocab].

        Raises:
            FloatingPointError: the logits hold a NaN or an infinity.
        """
        rows = []
        for request in requests:
            request.sequence.follow(request.token_ids, len(request.prompt_ids))
            rows.append(SamplingRow(request.sequence, len(request.token_ids), request.num_logprobs))
        return self._rows.sample_rows(logits, rows)
