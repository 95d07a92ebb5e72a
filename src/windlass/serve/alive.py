"""The engines of this process that hold memory, for those who find too little of it."""

from __future__ import annotations

import weakref

_engines: weakref.WeakValueDictionary[int, object] = weakref.WeakValueDictionary()


def add(engine: object) -> None:
    """Note that ``engine`` holds a model. It is not kept alive by that."""
    _engines[id(engine)] = engine


def discard(engine: object) -> None:
    """Note that ``engine`` holds nothing any more."""
    _engines.pop(id(engine), None)


def hint() -> str:
    """Return what to add to a complaint about memory: the engines that hold some, or nothing when there is none."""
    engines = [engine for reference in _engines.valuerefs() if (engine := reference()) is not None]
    if not engines:
        return ""
    return f"; these engines hold memory until they are terminated: {', '.join(sorted(map(repr, engines)))}"
