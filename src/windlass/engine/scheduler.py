"""Which tokens of which requests run in the next step. Pure: no clock, no threads, no model."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from windlass.engine.pages import PagePool
from windlass.engine.request import Request
from windlass.program.executor import PAGE_SIZE


class Chunk(NamedTuple):
    """``num_tokens`` of ``request`` from its position ``request.num_computed`` on, and ``drafts`` to follow them."""

    request: Request
    num_tokens: int
    drafts: tuple[int, ...] = ()
    """Guesses of the tokens that come next; only a chunk that completes has any."""

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

    def __init__(self, pool: PagePool, *, max_num_sequence: int, max_tokens: int, whole_prompts: bool = False) -> None:
        """``whole_prompts``: a prompt, of at most ``max_tokens``, is never cut into chunks."""
        self.pool = pool
        self._whole_prompts = whole_prompts
        self.max_num_sequence = max_num_sequence
        self.max_tokens = max_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.preempted: list[Request] = []
        """Requests that gave their pages back, until the engine thread takes them out."""

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
            self._free_pages(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self, prefill_budget: int) -> list[Chunk]:
        """Choose the next step: at most ``max_tokens`` tokens, of which at most ``prefill_budget`` in prefill chunks.

        Empty only when nothing waits or runs. Pages for the chosen tokens are taken.
        """
        chunks = self._still_running([Chunk(request, 1) for request in self._decodes() if self._reserve(request, 1)])
        room = min(self.max_tokens - len(chunks), max(prefill_budget, 1))
        for request in [r for r in self.running if r.num_pending > 1]:
            room -= self._prefill(request, room, chunks)
        for request in list(self.waiting):
            if room <= 0 or len(self.running) >= self.max_num_sequence:
                break
            if self._awaits_prefix(request):
                continue
            if not self._admit(request):
                break
            room -= self._prefill(request, room, chunks)
        return self._still_running(chunks)

    def reserve_drafts(self, chunk: Chunk, count: int) -> int:
        """Take the pages for up to ``count`` drafts behind a chosen chunk; return for how many there are any.

        No request gives a page back for drafts. The pages stay with the request, whatever becomes of the drafts.
        """
        request = chunk.request
        missing = self._pages_missing(request, chunk.num_tokens + count)
        if missing > 0:
            request.pages.extend(self.pool.take(min(missing, self.pool.num_available)) or ())
        return min(count, len(request.pages) * PAGE_SIZE - request.num_computed - chunk.num_tokens)

    def advance(self, request: Request, num_tokens: int) -> None:
        """Account for ``num_tokens`` of ``request`` that were computed; pages now full join the prefix tree."""
        request.num_computed += num_tokens
        while (len(request.cached) + 1) * PAGE_SIZE <= request.num_computed:
            index = len(request.cached)
            tokens = request.token_ids[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
            parent = request.cached[-1] if request.cached else None
            page = self.pool.insert(parent, tokens, request.pages[index], request.space)
            if page is None:
                return
            request.cached.append(page)
            request.pages[index] = page.page
        if request.pin_prompt and request.num_computed >= len(request.prompt_ids):
            request.pin_prompt = False
            self.pool.pin(request.cached[: len(request.prompt_ids) // PAGE_SIZE])

    def check(self) -> None:
        """Raise RuntimeError unless every page is accounted for."""
        self.pool.check(sum(len(request.pages) - len(request.cached) for request in self.running))

    def _still_running(self, chunks: list[Chunk]) -> list[Chunk]:
        """Leave out requests that gave their pages back after they were chosen."""
        return [chunk for chunk in chunks if chunk.request in self.running] if self.preempted else chunks

    def _decodes(self) -> list[Request]:
        return [request for request in self.running if request.num_pending == 1][: self.max_tokens]

    def _admit(self, request: Request) -> bool:
        """Move a waiting request, with the cached part of its tokens, to the running ones.

        False, and nothing changes, when its remaining tokens would need the pages of others.
        """
        request.cached = self.pool.match(request.token_ids, request.space)
        request.pages = [page.page for page in request.cached]
        request.num_computed = request.num_draft_computed = len(request.pages) * PAGE_SIZE
        if self.running and self._pages_missing(request, request.num_pending) > self.pool.num_available:
            self._free_pages(request)
            return False
        if not request.num_generated:
            request.num_reused = request.num_computed
        self.waiting.remove(request)
        self.running.append(request)
        return True

    def _awaits_prefix(self, request: Request) -> bool:
        """True while a running request computes a page that this one could share: waiting costs less than both."""
        if not self.pool.prefix_cache:
            return False
        for other in self.running:
            end = (other.num_computed // PAGE_SIZE + 1) * PAGE_SIZE
            if (
                other.num_pending > 1
                and other.adapter is request.adapter
                and min(len(request.token_ids) - 1, len(other.token_ids)) >= end
                and other.token_ids[:end] == request.token_ids[:end]
            ):
                return True
        return False

    def _prefill(self, request: Request, room: int, chunks: list[Chunk]) -> int:
        tokens = min(request.num_pending, room)
        if self._whole_prompts and tokens < request.num_pending:
            return 0
        if tokens > 0 and self._reserve(request, tokens):
            chunks.append(Chunk(request, tokens))
            return tokens
        return 0

    @staticmethod
    def _pages_missing(request: Request, tokens: int) -> int:
        """Pages that ``tokens`` more need; below 0 when drafts that failed have left some."""
        return -(-(request.num_computed + tokens) // PAGE_SIZE) - len(request.pages)

    def _reserve(self, request: Request, tokens: int) -> bool:
        """Take the pages for the request's next tokens, from younger requests if need be; False when it yields."""
        if request not in self.running:
            return False
        missing = self._pages_missing(request, tokens)
        if missing <= 0:
            return True
        while (pages := self.pool.take(missing)) is None:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        request.pages.extend(pages)
        return True

    def _preempt(self, request: Request) -> None:
        self.preempted.append(request)
        self.running.remove(request)
        self._free_pages(request)
        request.pooled = None
        self.waiting.appendleft(request)

    def _free_pages(self, request: Request) -> None:
        self.pool.give_back(request.pages[len(request.cached) :])
        self.pool.release(request.cached)
        request.pages, request.cached, request.num_computed = [], [], 0
