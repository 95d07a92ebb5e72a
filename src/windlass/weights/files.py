"""Judging the file names that a file names."""

from __future__ import annotations

from pathlib import Path

from windlass.errors import LoadError


def sibling(path: Path, name: object) -> Path:
    """Return the file called ``name`` beside ``path``, as ``path`` asks for.

    Raises:
        LoadError: it is not a plain file name (it would lead out of the directory), or there is no such file.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or any(c in name for c in "/\\\0:"):
        raise LoadError(path, f"{name!r} is not the name of a file in this directory")
    file = path.with_name(name)
    if not file.is_file():
        raise LoadError(file, f"the file is missing; {path.name} needs it")
    return file
