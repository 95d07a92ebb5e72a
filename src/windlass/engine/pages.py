"""Which pages of the KV cache are in use."""

from __future__ import annotations


class PagePool:
    """The free list of the KV cache's pages. Owned by the engine thread.

    Invariant: every page is either free, once, or held by exactly one caller of ``take``.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """Take ``count`` pages, or None (and no page) when fewer are free."""
        if count > len(self._free):
            return None
        return [self._free.pop() for _ in range(count)]

    def give_back(self, pages: list[int]) -> None:
        """Free ``pages``, which came from ``take``, and empty the list."""
        self._free.extend(pages)
        pages.clear()

    def check(self, held: int) -> None:
        """Raise RuntimeError unless free pages plus the ``held`` ones are all there are, each once."""
        free = len(self._free)
        if free + held != self.num_pages or len(set(self._free)) != free:
            raise RuntimeError(f"page accounts do not add up: {free} free + {held} held != {self.num_pages}")
