"""Tests of one run in several processes (``pytest -n``), some of which have to be alone."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def room(directory: Path, *, alone: bool) -> Iterator[None]:
    """Be in the room that the processes share which name the same ``directory``, beside others or ``alone``."""
    with (directory / "door").open("w") as door, (directory / "room").open("w") as inside:
        # Who waits for an empty room keeps the door closed, or it would never be empty.
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            # Said, since a forked child may have the files open too.
            fcntl.flock(inside, fcntl.LOCK_UN)
