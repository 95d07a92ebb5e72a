"""Who is alone in the room, and who waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.lifecycle import wait_for
from support.room import room


class Visitor:
    """Goes into the room, in a thread, and stays until told to leave."""

    def __init__(self, directory: Path, *, alone: bool = False) -> None:
        self.inside, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._visit, args=(directory, alone))
        self._thread.start()

    def _visit(self, directory: Path, alone: bool) -> None:
        with room(directory, alone=alone):
            self.inside.set()
            self._leave.wait(10)

    def leave(self) -> None:
        self._leave.set()
        self._thread.join()


@pytest.fixture
def visitors() -> Iterator[list[Visitor]]:
    came: list[Visitor] = []
    yield came
    for visitor in came:
        visitor.leave()


def test_who_is_alone_waits_for_an_empty_room_and_keeps_it(tmp_path: Path, visitors: list[Visitor]) -> None:
    first, second = Visitor(tmp_path), Visitor(tmp_path)
    visitors += first, second
    assert first.inside.wait(10)
    assert second.inside.wait(10)
    alone = Visitor(tmp_path, alone=True)
    visitors.append(alone)
    door = (tmp_path / "door").stat().st_ino
    assert wait_for(lambda: is_locked(door))
    later = Visitor(tmp_path)
    visitors.append(later)
    first.leave()
    assert not alone.inside.wait(0.05)
    second.leave()
    assert alone.inside.wait(10)
    assert not later.inside.wait(0.05)
    alone.leave()
    assert later.inside.wait(10)


def is_locked(inode: int) -> bool:
    """Whether somebody holds a lock on a file."""
    return any(f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())
