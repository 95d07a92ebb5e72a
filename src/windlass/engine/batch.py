"""From the scheduler's choice to the arrays an executor takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from windlass.engine.scheduler import Chunk
from windlass.program.executor import Batch


def make_batch(chunks: Sequence[Chunk]) -> Batch:
    """Lay the chunks out as one ragged batch.

    Logits are wanted for the last token of each chunk that completes, and for each of its drafts, in order.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    token_starts = [0]
    page_ids: list[int] = []
    page_starts = [0]
    logit_rows: list[int] = []
    for chunk in chunks:
        request = chunk.request
        start, end = request.num_computed, request.num_computed + chunk.num_tokens
        token_ids += request.token_ids[start:end]
        token_ids += chunk.drafts
        positions += range(start, end + len(chunk.drafts))
        token_starts.append(len(token_ids))
        page_ids += request.pages
        page_starts.append(len(page_ids))
        if chunk.completes:
            logit_rows += range(len(token_ids) - 1 - len(chunk.drafts), len(token_ids))
    return Batch(
        token_ids=np.array(token_ids, dtype=np.int32),
        positions=np.array(positions, dtype=np.int32),
        token_starts=np.array(token_starts, dtype=np.int32),
        page_ids=np.array(page_ids, dtype=np.int32),
        page_starts=np.array(page_starts, dtype=np.int32),
        logit_rows=np.array(logit_rows, dtype=np.int32),
    )
