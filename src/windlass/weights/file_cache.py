"""A directory of files that can be made again: safe against other processes, crashes and full disks."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

_PARTIAL = ".part"
_ABANDONED_SECONDS = 3600.0
"""A partial file that nobody has written to for so long belongs to a process that died."""


class FileCache:
    """Files by name, together at most ``limit`` bytes; those unused for longest go first.

    A file appears under its name when it is complete and on the disk, in one step, and is never changed afterwards.
    Whoever has one open or mapped keeps it, whatever happens to the name. Several processes may use one directory; when
    two write the same name, each writes a file of its own and the later one stays.

    A cache that cannot be read or written is as good as an empty one: nothing here raises for that, it is logged.
    """

    def __init__(self, directory: Path, limit: int | None = None) -> None:
        """Use ``directory``, which is made when it is first written to.

        Args:
            limit: in bytes; None is 32 GiB, or a tenth of the file system where that is less.
        """
        self.directory = directory
        self._limit = limit

    def open(self, name: str) -> int | None:
        """Return a descriptor of the file for reading, which the caller closes, or None when there is none."""
        try:
            descriptor = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            _note("%s cannot be opened: %s", self.directory / name, error)
            return None
        with contextlib.suppress(OSError):
            os.utime(descriptor)  # access times are often not kept
        return descriptor

    def touch(self, name: str) -> bool:
        """Give the file the time of now; return whether there is one."""
        try:
            os.utime(self.directory / name)
        except OSError:
            return False
        return True

    def write(self, name: str, size: int, fill: Callable[[int], None]) -> bool:
        """Make the file; return whether it is there now.

        Args:
            size: about how large it will be; room is made for it first.
            fill: writes the content to the descriptor it is given. What it raises is raised here, but for OSError, and
                then no file is made.
        """
        partial = self.directory / f"{name}.{os.getpid()}-{secrets.token_hex(4)}{_PARTIAL}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self._make_room(size, name):
                return False
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fill(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            partial.replace(self.directory / name)
        except OSError as error:
            _note("%s cannot be kept: %s", self.directory / name, error)
            _remove(partial)
            return False
        except BaseException:
            _remove(partial)
            raise
        return True

    def remove(self, name: str) -> int:
        """Remove the file, if there is one; return how many bytes it had."""
        path = self.directory / name
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        except OSError as error:
            _note("%s cannot be removed: %s", path, error)
            return 0
        return size

    def _make_room(self, size: int, name: str) -> bool:
        """Remove what was used least recently until ``size`` bytes more keep to the limit. False when they cannot."""
        limit = self._limit
        if limit is None:
            system = os.statvfs(self.directory)
            limit = min(32 << 30, system.f_blocks * system.f_frsize // 10)
        if size > limit:
            _note("%s: %d bytes are more than the cache may hold (%d)", name, size, limit)
            return False
        files = []
        now = time.time()
        for path in self.directory.iterdir():
            try:
                status = path.stat()
            except OSError:
                continue  # another process has removed it
            if path.suffix == _PARTIAL and now - status.st_mtime > _ABANDONED_SECONDS:
                _remove(path)
            elif path.name != name:
                files.append((status.st_mtime, status.st_size, path))
        used = sum(size for _, size, _ in files)
        for _, freed, path in sorted(files):
            if used + size <= limit:
                break
            _remove(path)
            used -= freed
        return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _note(message: str, *arguments: object) -> None:
    import logging  # takes 5 ms to import, for a line that is hardly ever written

    logging.getLogger(__name__).info(message, *arguments)
