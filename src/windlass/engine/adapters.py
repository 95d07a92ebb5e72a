"""The adapters of a loaded model, as requests choose them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from windlass.errors import InvalidRequestError
from windlass.program.adapter import PackedAdapter

_numbers = itertools.count(1)


@dataclass(eq=False, slots=True)
class Adapter:
    """One adapter that was loaded.

    ``number`` is its own for ever: no other adapter of the process has it, nor the next one of the same name. What it
    computed is found under it in the prefix cache. ``retired`` is set, once, before anybody looks whether it is still
    in use, and looked at by every call that would use it after that call is in the accounts: so a retired adapter that
    no open call uses is not used again.
    """

    name: str
    path: str
    packed: PackedAdapter
    number: int = field(init=False, default_factory=lambda: next(_numbers))
    retired: bool = field(init=False, default=False)


class Adapters:
    """The adapters of one model, by name. Any thread may use them; takes no lock, as every access is one step.

    ``add`` is called by one thread at a time.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Adapter] = {}
        # Those too that are retired and still in use.
        self._open: dict[int, Adapter] = {}
        self._closed = False

    @property
    def all(self) -> tuple[Adapter, ...]:
        """Those that requests may choose, in the order in which they were loaded."""
        return tuple(self._by_name.values())

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def find(self, name: str, *, param: str = "lora") -> Adapter:
        """Return the adapter of that name.

        Raises:
            InvalidRequestError: there is none.
        """
        adapter = self._by_name.get(name)
        if adapter is None:
            raise unknown_adapter(name, self._by_name, param)
        return adapter

    def add(self, adapter: Adapter) -> bool:
        """Let requests choose ``adapter``, whose name is free. False, and it is closed, when the model is gone."""
        for other in list(self._open.values()):
            if other.retired and not other.packed.nbytes:
                del self._open[other.number]
        self._open[adapter.number] = adapter
        self._by_name[adapter.name] = adapter
        if self._closed:
            self.close()
        return not self._closed

    def retire(self, name: str) -> Adapter:
        """Let no more requests choose the adapter of that name, and return it.

        Raises:
            InvalidRequestError: there is none.
        """
        adapter = self._by_name.pop(name, None)
        if adapter is None:
            raise unknown_adapter(name, self._by_name, "name")
        adapter.retired = True
        return adapter

    def close(self) -> None:
        """Free all of them, in use or not: the model goes, and nothing runs any more. Idempotent."""
        self._closed = True
        self._by_name.clear()
        for adapter in list(self._open.values()):
            adapter.retired = True
            adapter.packed.close()


def unknown_adapter(name: str, known: Iterable[str], param: str) -> InvalidRequestError:
    """Return how a caller is told that there is no adapter ``name``."""
    loaded = ", ".join(known)
    hint = f"; loaded are {loaded}" if loaded else ""
    return InvalidRequestError(f"there is no adapter {name[:200]!r}{hint}", param=param, code="model_not_found")
