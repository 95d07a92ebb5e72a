"""The pages of the KV cache: who holds them, and which of them hold a prefix that may come again."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from windlass.program.executor import PAGE_SIZE


@dataclass(eq=False, slots=True)
class CachedPage:
    """A full page in the prefix tree: the keys and values of the ``PAGE_SIZE`` tokens after those of its ancestors.

    ``holders`` counts the requests that read it. A page is held at least as often as any of its children. ``tokens``
    are its key below its parent; behind those of a first page stands the number of an adapter, if one computed it.
    """

    page: int
    tokens: tuple[int, ...]
    parent: CachedPage | None
    children: dict[tuple[int, ...], CachedPage] = field(default_factory=dict)
    holders: int = 0
    last_used: int = 0


class PagePool:
    """All pages of one KV cache, with a radix tree over the full ones. Owned by the engine thread.

    Invariant: every page is free, or private to one request, or in the tree, and only one of these. A page in the tree
    that nobody holds stays until its memory is needed; the one unused for longest goes first, leaves before parents.
    The tree is keyed by token ids, which are compared, never only hashed. What an adapter computed is apart from what
    the model computed alone, and from what other adapters did: each is a ``space``, a tree of its own below the root.
    """

    def __init__(self, num_pages: int, *, prefix_cache: bool = True) -> None:
        self.num_pages = num_pages
        self.prefix_cache = prefix_cache
        self._free = list(range(num_pages - 1, -1, -1))
        self._root = CachedPage(page=-1, tokens=(), parent=None)
        self._num_cached = 0
        self._num_unheld = 0
        self._unheld: list[tuple[int, int, CachedPage]] = []
        self._pinned: list[tuple[CachedPage, ...]] = []
        self._clock = itertools.count(1)

    @property
    def num_available(self) -> int:
        """Pages that ``take`` can give: free ones, and cached ones that nobody holds."""
        return len(self._free) + self._num_unheld

    @property
    def num_free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages in the prefix tree, held or not."""
        return self._num_cached

    def take(self, count: int) -> list[int] | None:
        """Take ``count`` pages, evicting cached ones if need be; None, and no page, when there are not as many."""
        if count > self.num_available:
            return None
        while len(self._free) < count:
            self._evict_one()
        return [self._free.pop() for _ in range(count)]

    def give_back(self, pages: Sequence[int]) -> None:
        """Free private pages."""
        self._free.extend(pages)

    def match(self, token_ids: Sequence[int], space: int = 0) -> list[CachedPage]:
        """Hold the longest prefix of ``token_ids`` that is cached in ``space`` and return its pages, in order.

        At least one token stays outside, since a request needs the logits of its last one.
        """
        found: list[CachedPage] = []
        node = self._root
        for start in range(0, len(token_ids) - PAGE_SIZE, PAGE_SIZE):
            child = node.children.get(_key(token_ids[start : start + PAGE_SIZE], space if start == 0 else 0))
            if child is None:
                break
            self._hold(child)
            found.append(child)
            node = child
        return found

    def insert(self, parent: CachedPage | None, tokens: Sequence[int], page: int, space: int = 0) -> CachedPage | None:
        """Put a private page, now full, into the tree below ``parent``, held by the caller; None begins in ``space``.

        When the tree has the same tokens there already, that page is held instead and the caller's is freed: their
        contents are the same. None when prefixes are not cached; the page stays private.
        """
        if not self.prefix_cache:
            return None
        above = parent or self._root
        key = _key(tokens, 0 if parent else space)
        known = above.children.get(key)
        if known is not None:
            self._free.append(page)
        else:
            known = CachedPage(page, key, parent=above)
            above.children[key] = known
            self._num_cached += 1
            self._num_unheld += 1
        self._hold(known)
        return known

    def release(self, pages: Sequence[CachedPage]) -> None:
        """Undo one hold of each of ``pages``, a path from the root as ``match`` and ``insert`` gave it."""
        for page in reversed(pages):
            page.holders -= 1
            if page.holders == 0:
                page.last_used = next(self._clock)
                self._num_unheld += 1
                self._offer(page)

    def pin(self, pages: Sequence[CachedPage]) -> None:
        """Hold ``pages``, a path that the caller holds already, until ``clear``."""
        for page in pages:
            self._hold(page)
        self._pinned.append(tuple(pages))

    def clear(self) -> None:
        """Forget every prefix that no request holds."""
        while self._pinned:
            self.release(self._pinned.pop())
        while self._num_unheld:
            self._evict_one()

    def check(self, private: int) -> None:
        """Raise RuntimeError unless free, cached and the ``private`` pages are all there are, each once."""
        tree = list(self._walk(self._root))
        pages = self._free + [node.page for node in tree]
        unheld = sum(node.holders == 0 for node in tree)
        if (
            len(set(pages)) != len(pages)
            or len(pages) + private != self.num_pages
            or (len(tree), unheld) != (self._num_cached, self._num_unheld)
        ):
            raise RuntimeError(
                f"page accounts do not add up: {len(self._free)} free + {len(tree)} cached ({unheld} of them unheld, "
                f"{self._num_unheld} counted) + {private} private != {self.num_pages}"
            )

    def _hold(self, page: CachedPage) -> None:
        if page.holders == 0:
            self._num_unheld -= 1
        page.holders += 1

    def _offer(self, page: CachedPage) -> None:
        """Note that ``page`` can be evicted, if it can."""
        if page.holders or page.children:
            return
        if len(self._unheld) > 2 * self.num_pages:
            leaves = (node for node in self._walk(self._root) if not node.holders and not node.children)
            self._unheld = [(leaf.last_used, leaf.page, leaf) for leaf in leaves if leaf is not page]
            heapq.heapify(self._unheld)
        heapq.heappush(self._unheld, (page.last_used, page.page, page))

    def _evict_one(self) -> None:
        """Free the leaf that was unused for longest. There is one when any page is not held."""
        while True:
            last_used, _, page = heapq.heappop(self._unheld)
            # Entries are not removed when a page is used again, gets children, or was evicted: those are passed over.
            if page.holders == 0 and not page.children and page.last_used == last_used and page.parent is not None:
                break
        parent = page.parent
        del parent.children[page.tokens]
        page.parent = None
        self._num_cached -= 1
        self._num_unheld -= 1
        self._free.append(page.page)
        if parent is not self._root:
            self._offer(parent)

    def _walk(self, node: CachedPage) -> list[CachedPage]:
        found: list[CachedPage] = []
        waiting = list(node.children.values())
        while waiting:
            page = waiting.pop()
            found.append(page)
            waiting.extend(page.children.values())
        return found


def _key(tokens: Sequence[int], space: int) -> tuple[int, ...]:
    return (*tokens, space) if space else tuple(tokens)
