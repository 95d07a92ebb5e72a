"""Downloading files of a hub: continued where they were left, checked against checksums, one process at a time.

huggingface_hub asks for the bytes; it neither keeps what came before an interruption nor checks what came. The files
go to where its own cache has them (``blobs``, by checksum), so that it finds them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

from windlass.errors import DownloadError

WORKERS = 4
"""Files that come at the same time."""

_REPORT_SECONDS = 0.1
_JOIN_SECONDS = 1.0
_PIECE = 1 << 20

Report: TypeAlias = Callable[[str, int, int], None]
"""Called with (phase, bytes so far, bytes in all), several times a second; what it raises ends the download."""


class Fetch(Protocol):
    """What asks a hub for a file's bytes."""

    def __call__(self, name: str, file: BinaryIO, start: int) -> None:
        """Write the bytes of the file ``name`` from ``start`` on to the end of ``file``, which has those before."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository. ``checksum`` is SHA-256, or git's for a blob where ``is_git``, in hexadecimal digits."""

    name: str
    size: int
    checksum: str
    is_git: bool


def download_blobs(
    origin: str, files: Sequence[HubFile], storage: Path, locks: Path, fetch: Fetch, report: Report
) -> None:
    """Bring the files into ``storage/blobs``, each under its checksum, unless they are there.

    What is left of an interrupted download is continued. Of several processes that want the same file one downloads
    it and the others wait.

    Args:
        origin: what errors call the repository.
        storage: the repository's directory in the cache.
        locks: the directory with its lock files.
        report: called by this thread, also while nothing comes.

    Raises:
        DownloadError: the disk is full or will be, or what came is not what the hub announced.
        OSError: the cache cannot be written.
    """
    blobs = storage / "blobs"
    missing = {file.checksum: file for file in files if not (blobs / file.checksum).exists()}
    if not missing:
        return
    blobs.mkdir(parents=True, exist_ok=True)
    locks.mkdir(parents=True, exist_ok=True)
    wanted = list(missing.values())
    _check_space(origin, wanted, blobs)
    _Downloads(origin, wanted, blobs, locks, fetch).run(report)


def partial_path(blobs: Path, file: HubFile) -> Path:
    """Return where a file is written before it is whole."""
    return blobs / f"{file.checksum}.incomplete"


def _check_space(origin: str, files: Sequence[HubFile], blobs: Path) -> None:
    needed = sum(max(0, file.size - _size(partial_path(blobs, file))) for file in files)
    free = shutil.disk_usage(blobs).free
    if needed > free:
        reason = f"the download needs {_gib(needed)} of disk, of which {_gib(free)} are left in {blobs.parent.parent}"
        raise DownloadError(origin, reason, code="disk_full")


class _Stopped(Exception):  # noqa: N818  (no error: the download was told to end)
    pass


class _Downloads:
    """Workers that download files, and what they have done so far. The workers end soon after an error or a stop."""

    def __init__(self, origin: str, files: Sequence[HubFile], blobs: Path, locks: Path, fetch: Fetch) -> None:
        self._origin = origin
        self._blobs = blobs
        self._locks = locks
        self._fetch = fetch
        self._waiting: queue.SimpleQueue[HubFile] = queue.SimpleQueue()
        for file in sorted(files, key=lambda file: -file.size):
            self._waiting.put(file)
        self._done = dict.fromkeys((file.checksum for file in files), 0)
        self._total = sum(file.size for file in files)
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._workers = [
            # Daemons: one that waits for a silent hub does not hold up an interpreter that wants to exit.
            threading.Thread(target=self._work, name=f"windlass-download-{number}", daemon=True)
            for number in range(min(WORKERS, len(files)))
        ]

    def run(self, report: Report) -> None:
        for worker in self._workers:
            worker.start()
        try:
            while any(worker.is_alive() for worker in self._workers) and not self._errors:
                report("downloading", sum(self._done.values()), self._total)
                for worker in self._workers:
                    worker.join(_REPORT_SECONDS / len(self._workers))
        finally:
            self._stop.set()
            until = time.monotonic() + _JOIN_SECONDS
            for worker in self._workers:
                worker.join(max(0.0, until - time.monotonic()))
        if self._errors:
            raise self._errors[0]
        report("downloading", self._total, self._total)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._download(self._waiting.get_nowait())
        except (queue.Empty, _Stopped):
            pass
        except BaseException as error:
            self._errors.append(error)

    def _download(self, file: HubFile) -> None:
        blob = self._blobs / file.checksum
        with self._lock(file):
            if not blob.exists():
                partial = partial_path(self._blobs, file)
                self._fill(partial, file)
                partial.replace(blob)
        self._done[file.checksum] = file.size

    @contextlib.contextmanager
    def _lock(self, file: HubFile) -> Iterator[None]:
        """Hold the lock that huggingface_hub holds when it writes this file: flock on a file that it may remove."""
        path = self._locks / f"{file.checksum}.lock"
        while True:
            with path.open("ab") as opened:
                try:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._done[file.checksum] = _size(partial_path(self._blobs, file))
                    if self._stop.wait(_REPORT_SECONDS):
                        raise _Stopped from None
                    continue
                if os.fstat(opened.fileno()).st_nlink == 0:
                    continue  # removed by who had it: the lock of the others is another file
                yield
                return

    def _fill(self, partial: Path, file: HubFile) -> None:
        """Make ``partial`` the whole file."""
        start = _size(partial)
        if start > file.size:
            partial.unlink()
            start = 0
        if start < file.size or not file.size:
            self._fetch_rest(partial, file)
        size = _size(partial)
        if size == file.size and _checksum(partial, file) == file.checksum:
            return
        partial.unlink()
        if start:  # what lay here was not a part of this file
            self._fill(partial, file)
            return
        what = "checksum is another" if size == file.size else f"size is {size} bytes, not {file.size}"
        reason = f"what came is not what the hub announces: its {what}"
        raise DownloadError(f"{self._origin}/{file.name}", reason, code="damaged")

    def _fetch_rest(self, partial: Path, file: HubFile) -> None:
        while True:
            start = _size(partial)
            try:
                with _Watched(partial, lambda size: self._note(file, size)) as opened:
                    self._fetch_to(opened, file, start)
                return
            except (DownloadError, _Stopped):
                raise
            except Exception:
                # A connection that breaks now and then brings the file all the same.
                if _size(partial) <= start:
                    raise

    def _fetch_to(self, opened: BinaryIO, file: HubFile, start: int) -> None:
        try:
            self._fetch(file.name, opened, start)
            os.fsync(opened.fileno())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = "the disk is full; what has come is kept, and the next download goes on from there"
            raise DownloadError(self._origin, reason, code="disk_full") from error

    def _note(self, file: HubFile, size: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._done[file.checksum] = size


class _Watched(io.FileIO):
    """A file at whose end is written; ``watch`` is told its size before each piece is, and may raise."""

    def __init__(self, path: Path, watch: Callable[[int], None]) -> None:
        super().__init__(path, "ab")
        self._watch = watch

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._watch(self.tell() + len(view))
        done = 0
        while done < len(view):  # a raw file may take less than it is given
            done += super().write(view[done:]) or 0
        return done


def _checksum(path: Path, file: HubFile) -> str:
    digest = hashlib.sha256()
    if file.is_git:
        digest = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as opened:
        while piece := opened.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
