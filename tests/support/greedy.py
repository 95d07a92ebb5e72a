"""Greedy decoding on a bare executor: page tables, chunks and ragged batches, without any engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from windlass.program.executor import PAGE_SIZE, Batch, Executor


@dataclass(eq=False)
class Sequence:
    """A prompt, what was generated, and the logits of every position that was computed."""

    prompt: tuple[int, ...]
    tokens: list[int]
    pages: list[int] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[len(self.prompt) :]

    @property
    def waiting(self) -> int:
        """Tokens that are known and not yet computed."""
        return len(self.tokens) - len(self.logits)


class GreedyDriver:
    """Feeds an executor. Pages are handed out in a shuffled order, so that no page table is a plain range."""

    def __init__(self, executor: Executor, num_pages: int) -> None:
        self._executor = executor
        self._free: list[int] = np.random.default_rng(0).permutation(num_pages).tolist()

    def add(self, prompt: list[int]) -> Sequence:
        """Begin a sequence."""
        return Sequence(tuple(prompt), list(prompt))

    def free(self, sequence: Sequence) -> None:
        """Give back a sequence's pages; whoever gets them finds old keys and values there."""
        self._free += sequence.pages
        sequence.pages = []

    def step(self, work: list[tuple[Sequence, int]]) -> None:
        """Compute that many waiting tokens of each sequence in one batch; a sequence with none left gets its next."""
        ids: list[int] = []
        positions: list[int] = []
        pages: list[int] = []
        token_starts, page_starts = [0], [0]
        for sequence, count in work:
            done = len(sequence.logits)
            while len(sequence.pages) * PAGE_SIZE < done + count:
                sequence.pages.append(self._free.pop())
            ids += sequence.tokens[done : done + count]
            positions += range(done, done + count)
            pages += sequence.pages
            token_starts.append(len(ids))
            page_starts.append(len(pages))
        # All rows are asked for, the last one first: results come in the order of logit_rows.
        rows = list(reversed(range(len(ids))))
        arrays = (ids, positions, token_starts, pages, page_starts, rows)
        logits = self._executor.run(Batch(*(np.array(array, dtype=np.int32) for array in arrays)))[::-1]
        for (sequence, count), start in zip(work, token_starts, strict=False):
            sequence.logits += list(logits[start : start + count])
            if not sequence.waiting:
                sequence.tokens.append(int(np.argmax(sequence.logits[-1])))

    def generate(self, prompt: list[int], new_tokens: int, *, chunk: int | None = None) -> Sequence:
        """Run one sequence alone, its prompt in chunks."""
        sequence = self.add(prompt)
        while len(sequence.generated) < new_tokens:
            self.step([(sequence, min(sequence.waiting, chunk or sequence.waiting))])
        return sequence

    def generate_together(
        self, prompts: list[list[int]], new_tokens: int, *, chunk: int, stagger: int
    ) -> list[Sequence]:
        """Run sequences that join one after the other, ``stagger`` steps apart, in an order that changes every step."""
        order = np.random.default_rng(1)
        sequences = [self.add(prompt) for prompt in prompts]
        step = 0
        while any(len(sequence.generated) < new_tokens for sequence in sequences):
            here = [s for i, s in enumerate(sequences) if i * stagger <= step and len(s.generated) < new_tokens]
            self.step([(here[i], min(here[i].waiting, chunk)) for i in order.permutation(len(here))])
            step += 1
        return sequences
