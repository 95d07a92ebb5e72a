"""From the scheduler's choice to the arrays an executor takes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from windlass.engine.scheduler import Chunk
from windlass.program.executor import Batch
from windlass.program.pooling import Pooling


class Span(NamedTuple):
    """Tokens of one sequence from ``position`` on, whose pages are ``pages``; logits of the last ``num_logits``."""

    token_ids: Sequence[int]
    position: int
    pages: Sequence[int]
    num_logits: int


def make_batch(chunks: Sequence[Chunk], pooling: Pooling | None = None) -> Batch:
    """Lay the chunks out as one ragged batch.

    Logits are wanted for the last token of each chunk that completes, and for each of its drafts, in order; with
    ``pooling`` the hidden states that it needs.
    """
    spans = []
    for chunk in chunks:
        request = chunk.request
        start = request.num_computed
        token_ids = request.token_ids[start : start + chunk.num_tokens]
        token_ids += chunk.drafts
        if pooling is not None:
            num_rows = pooling.num_rows(chunk.num_tokens, completes=chunk.completes)
        else:
            num_rows = 1 + len(chunk.drafts) if chunk.completes else 0
        spans.append(Span(token_ids, start, request.pages, num_rows))
    batch = lay_out(spans)
    adapters = [chunk.request.adapter for chunk in chunks]
    if not any(adapters):
        return batch
    return replace(batch, adapters=tuple(None if adapter is None else adapter.packed for adapter in adapters))


def lay_out(spans: Sequence[Span]) -> Batch:
    """One ragged batch of ``spans``, each of another sequence, in order."""
    token_ids: list[int] = []
    positions: list[int] = []
    token_starts = [0]
    page_ids: list[int] = []
    page_starts = [0]
    logit_rows: list[int] = []
    for span in spans:
        token_ids += span.token_ids
        positions += range(span.position, span.position + len(span.token_ids))
        token_starts.append(len(token_ids))
        page_ids += span.pages
        page_starts.append(len(page_ids))
        logit_rows += range(len(token_ids) - span.num_logits, len(token_ids))
    return Batch(
        token_ids=array("i", token_ids),
        positions=array("i", positions),
        token_starts=array("i", token_starts),
        page_ids=array("i", page_ids),
        page_starts=array("i", page_starts),
        logit_rows=array("i", logit_rows),
        borrows_result=True,
    )
