"""From logits to the next tokens of a step."""

from __future__ import annotations

from collections.abc import Sequence

from windlass.engine.scheduler import Chunk
from windlass.late_numpy import np
from windlass.native import NativeExecutor
from windlass.native.sampling import RowSampler, SampledToken, SamplingRow
from windlass.program.executor import Executor, Rows


class Sampler:
    """Draws tokens. Ids from ``active_vocab_size`` on, the padding of the vocabulary, are never drawn.

    With a native executor several rows are shared among its threads.
    """

    def __init__(self, active_vocab_size: int, kernels: str | None = None, executor: Executor | None = None) -> None:
        threads = executor if isinstance(executor, NativeExecutor) else None
        self._rows = RowSampler(active_vocab_size, kernels=kernels, executor=threads)

    def sample(self, logits: Rows, chunks: Sequence[Chunk]) -> list[list[SampledToken]]:
        """Return the next tokens of each chunk's request: its drafts as far as they are drawn too, and one more.

        Args:
            logits: [R, vocab], a row for each chunk and one for each of its drafts.
            chunks: those of a step that complete.

        Raises:
            FloatingPointError: the logits that a token comes from hold a NaN or an infinity.
        """
        for chunk in chunks:
            chunk.request.sequence.follow(chunk.request.token_ids, len(chunk.request.prompt_ids))
        # Where a draw depends on the tokens before it, only the first can be made without them.
        counts = [1 if chunk.request.sequence.counts_tokens else 1 + len(chunk.drafts) for chunk in chunks]
        try:
            drawn = self._draw(logits, chunks, counts)
        except FloatingPointError:
            # What stands behind a draft that is wrong is nobody's business.
            if all(count == 1 for count in counts):
                raise
            drawn = self._draw(logits, chunks, [1] * len(chunks))
        row = 0
        for chunk, tokens in zip(chunks, drawn, strict=True):
            for offset, draft in enumerate(chunk.drafts, start=1):
                if tokens[offset - 1].token_id != draft:
                    del tokens[offset:]
                    break
                if offset == len(tokens):
                    chunk.request.sequence.follow_one(draft)
                    tokens += self._rows.sample_rows(
                        np.asarray(logits)[row + offset : row + offset + 1], [_row(chunk, offset)]
                    )
            row += 1 + len(chunk.drafts)
        return drawn

    def _draw(self, logits: Rows, chunks: Sequence[Chunk], counts: Sequence[int]) -> list[list[SampledToken]]:
        """Draw from the first so many rows of each chunk."""
        rows: list[SamplingRow] = []
        indices: list[int] = []
        begin = 0
        for chunk, count in zip(chunks, counts, strict=True):
            rows += [_row(chunk, offset) for offset in range(count)]
            indices += range(begin, begin + count)
            begin += 1 + len(chunk.drafts)
        tokens = iter(self._rows.sample_rows(logits if len(rows) == len(logits) else np.asarray(logits)[indices], rows))
        return [[next(tokens) for _ in range(count)] for count in counts]


def _row(chunk: Chunk, offset: int) -> SamplingRow:
    request = chunk.request
    return SamplingRow(request.sequence, len(request.token_ids) + offset, request.num_logprobs)
