"""The cache of files: whole files only, a bound on their size, and no harm from others or from a bad disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from windlass.weights.file_cache import FileCache


def content(cache: FileCache, name: str) -> bytes | None:
    descriptor = cache.open(name)
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def filler(data: bytes) -> Callable[[int], None]:
    def fill(descriptor: int) -> None:
        os.write(descriptor, data)

    return fill


def used_long_ago(cache: FileCache, name: str, seconds: float) -> None:
    os.utime(cache.directory / name, (time.time() - seconds,) * 2)


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "made" / "later", 1000)


def names(cache: FileCache) -> set[str]:
    return {path.name for path in cache.directory.iterdir()}


def test_what_was_written_is_there(cache: FileCache) -> None:
    assert content(cache, "a") is None
    assert cache.write("a", 3, filler(b"abc"))
    assert content(cache, "a") == b"abc"
    assert names(cache) == {"a"}
    assert cache.directory.stat().st_mode & 0o077 == 0


def test_an_open_file_outlives_its_name(cache: FileCache) -> None:
    cache.write("a", 3, filler(b"old"))
    descriptor = cache.open("a")
    assert descriptor is not None
    cache.write("a", 3, filler(b"new"))
    assert os.read(descriptor, 10) == b"old"
    os.close(descriptor)
    assert content(cache, "a") == b"new"


class Stop(BaseException):
    """What a user's Ctrl-C is."""


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), Stop()])
def test_a_file_that_cannot_be_finished_leaves_nothing(cache: FileCache, error: BaseException) -> None:
    cache.write("a", 3, filler(b"old"))

    def fill(descriptor: int) -> None:
        os.write(descriptor, b"half")
        raise error

    if isinstance(error, OSError):
        assert not cache.write("a", 3, fill)
    else:
        with pytest.raises(Stop):
            cache.write("a", 3, fill)
    assert content(cache, "a") == b"old"
    assert names(cache) == {"a"}


def test_the_least_recently_used_make_room(cache: FileCache) -> None:
    for age, name in enumerate("abc"):
        cache.write(name, 300, filler(b"x" * 300))
        used_long_ago(cache, name, 100 - age)
    assert content(cache, "a") is not None  # now the one used last
    assert cache.write("d", 300, filler(b"x" * 300))
    assert names(cache) == {"a", "c", "d"}
    assert cache.write("e", 900, filler(b"x" * 900))
    assert names(cache) == {"e"}


def test_a_new_version_does_not_push_out_others(cache: FileCache) -> None:
    cache.write("a", 500, filler(b"x" * 500))
    cache.write("b", 500, filler(b"x" * 500))
    assert cache.write("b", 500, filler(b"y" * 500))
    assert names(cache) == {"a", "b"}


def test_what_is_larger_than_the_limit_is_not_kept(cache: FileCache) -> None:
    cache.write("a", 300, filler(b"x" * 300))

    def never(_descriptor: int) -> None:
        raise AssertionError

    assert not cache.write("b", 1001, never)
    assert names(cache) == {"a"}


def test_partial_files_of_dead_processes_are_removed(cache: FileCache) -> None:
    cache.write("a", 1, filler(b"a"))
    for name, age in (("x.1-old.part", 4000), ("x.2-new.part", 10)):
        (cache.directory / name).write_bytes(b"half")
        used_long_ago(cache, name, age)
    cache.write("b", 1, filler(b"b"))
    assert names(cache) == {"a", "b", "x.2-new.part"}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_directory_that_cannot_be_written_is_an_empty_cache(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    cache = FileCache(tmp_path / "locked" / "cache", 1000)
    assert not cache.write("a", 1, filler(b"a"))
    assert cache.open("a") is None


def test_a_cache_that_is_no_directory_is_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = FileCache(tmp_path / "file", 1000)
    assert cache.open("a") is None
    assert not cache.write("a", 1, filler(b"a"))


def test_a_cache_that_cannot_be_read_is_empty(cache: FileCache) -> None:
    (cache.directory / "a").mkdir(parents=True)
    descriptor = cache.open("a")  # a directory opens
    if descriptor is not None:
        os.close(descriptor)
    (cache.directory / "loop").symlink_to("loop")
    assert cache.open("loop") is None


def test_the_default_limit_is_a_share_of_the_file_system(tmp_path: Path) -> None:
    system = os.statvfs(tmp_path)
    cache = FileCache(tmp_path)
    assert cache.write("a", 3, filler(b"abc"))
    assert not cache.write("b", min(32 << 30, system.f_blocks * system.f_frsize // 10) + 1, filler(b"abc"))


def test_processes_that_write_the_same_name_at_once_both_succeed(cache: FileCache) -> None:
    """Each waits in the middle of its file until the other is there too."""
    script = textwrap.dedent("""
        import os, sys, time
        from pathlib import Path
        from windlass.weights.file_cache import FileCache

        cache = FileCache(Path(sys.argv[1]), 1 << 20)
        letter, other = sys.argv[2], sys.argv[3]

        def fill(descriptor):
            os.write(descriptor, letter.encode() * 1000)
            (cache.directory.parent / letter).touch()
            deadline = time.monotonic() + 60
            while not (cache.directory.parent / other).exists():
                assert time.monotonic() < deadline
                time.sleep(0.001)
            os.write(descriptor, letter.encode() * 1000)

        assert cache.write("same", 2000, fill)
    """)
    cache.directory.mkdir(parents=True)
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(cache.directory), *letters]) for letters in ("ab", "ba")
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert content(cache, "same") in (b"a" * 2000, b"b" * 2000)
    assert names(cache) == {"same"}


def test_a_writer_that_is_killed_leaves_no_file(cache: FileCache) -> None:
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from windlass.weights.file_cache import FileCache

        def fill(descriptor):
            os.write(descriptor, b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        FileCache(Path(sys.argv[1]), 1000).write("a", 8, fill)
    """)
    subprocess.run([sys.executable, "-c", script, str(cache.directory)], check=False, timeout=120)
    assert cache.open("a") is None
    (left,) = names(cache)
    used_long_ago(cache, left, 4000)
    assert cache.write("a", 8, filler(b"whole"))
    assert names(cache) == {"a"}


def test_touching_and_removing_one_file(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache")
    assert not cache.touch("a")
    assert cache.remove("a") == 0
    assert cache.write("a", 3, lambda descriptor: os.write(descriptor, b"abc") and None)
    os.utime(tmp_path / "cache/a", (1, 1))
    assert cache.touch("a")
    assert (tmp_path / "cache/a").stat().st_mtime > 1
    assert cache.remove("a") == 3
    assert list((tmp_path / "cache").iterdir()) == []
