"""When models were last loaded: the times of small files in the cache; file systems often keep none of reading."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from windlass.weights.file_cache import FileCache


def note_use(path: Path, cache: FileCache | None) -> None:
    """Note that the model at ``path`` was loaded now, if there is a cache."""
    if cache is not None and not cache.touch(use_name(path)):
        data = os.fsencode(path)
        cache.write(use_name(path), len(data), lambda descriptor: _write(descriptor, data))


def last_used(path: Path, cache: FileCache | None) -> float | None:
    """Return when the model at ``path`` was last loaded, in seconds since 1970, or None where nothing is known."""
    if cache is None:
        return None
    try:
        return (cache.directory / use_name(path)).stat().st_mtime
    except OSError:
        return None


def use_name(path: Path) -> str:
    """Return what the cache calls the note of a model."""
    return f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.used"


def _write(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)
