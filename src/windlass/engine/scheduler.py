"""Which tokens of which requests run in the next step. Pure: no clock, no threads, no model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from windlass.engine.pages import PagePool
from windlass.engine.request import Request
from windlass.program.executor import PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Chunk:
    """``num_tokens`` of ``request`` from its position ``request.num_computed`` on."""

    request: Request
    num_tokens: int

    @property
    def completes(self) -> bool:
        """True when the chunk ends with the request's last token, so that its logits give the next one."""
        return self.num_tokens == self.request.num_pending


class Scheduler:
    """Continuous batching: decodes first, then prefill chunks, first come first served. Owned by the engine thread.

    Invariant: a request is in ``waiting`` (and holds no pages) or in ``running``, never in both. When pages run out,
    the youngest running request gives its pages back and waits again, first in line: it is computed anew later. The
    pool must hold the longest request there can be; then the oldest running request always proceeds.
    """

    def __init__(self, pool: PagePool, *, max_num_sequence: int, max_tokens: int) -> None:
        self.pool = pool
        self.max_num_sequence = max_num_sequence
        self.max_tokens = max_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def has_work(self) -> bool:
        """True while any request is not finished."""
        return bool(self.running or self.waiting)

    @property
    def decoding(self) -> bool:
        """True while a running request generates, so that a long prefill would delay it."""
        return any(request.num_pending == 1 for request in self.running)

    def add(self, request: Request) -> None:
        """Put ``request`` at the end of the line."""
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Take ``request`` out, wherever it is, and free its pages; no-op when it is not here."""
        if request in self.running:
            self.running.remove(request)
            self.pool.give_back(request.pages)
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self, prefill_budget: int) -> list[Chunk]:
        """Choose the next step: at most ``max_tokens`` tokens, of which at most ``prefill_budget`` in prefill chunks.

        Empty only when nothing waits or runs. Pages for the chosen tokens are taken.
        """
        chunks: list[Chunk] = []
        room = self.max_tokens
        for request in [r for r in self.running if r.num_pending == 1][:room]:
            if request in self.running and self._reserve(request, 1):
                chunks.append(Chunk(request, 1))
                room -= 1
        chunks = [chunk for chunk in chunks if chunk.request in self.running]
        room = min(self.max_tokens - len(chunks), max(prefill_budget, 1))
        for request in [r for r in self.running if r.num_pending > 1]:
            room -= self._prefill(request, room, chunks)
        while room > 0 and self.waiting and len(self.running) < self.max_num_sequence:
            request = self.waiting[0]
            if self.running and self._pages_missing(request, request.num_pending) > self.pool.num_free:
                break
            self.waiting.popleft()
            self.running.append(request)
            room -= self._prefill(request, room, chunks)
        return [chunk for chunk in chunks if chunk.request in self.running]

    def _prefill(self, request: Request, room: int, chunks: list[Chunk]) -> int:
        tokens = min(request.num_pending, room)
        if tokens > 0 and request in self.running and self._reserve(request, tokens):
            chunks.append(Chunk(request, tokens))
            return tokens
        return 0

    @staticmethod
    def _pages_missing(request: Request, tokens: int) -> int:
        return -(-(request.num_computed + tokens) // PAGE_SIZE) - len(request.pages)

    def _reserve(self, request: Request, tokens: int) -> bool:
        """Take the pages for the request's next tokens, from younger requests if need be; False when it yields."""
        missing = self._pages_missing(request, tokens)
        while (pages := self.pool.take(missing)) is None:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        request.pages.extend(pages)
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self.pool.give_back(request.pages)
        request.num_computed = 0
        self.waiting.appendleft(request)
