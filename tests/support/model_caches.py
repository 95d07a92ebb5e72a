"""Caches of downloaded models, as huggingface_hub and MLC-LLM lay them out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path


def add_to_hub_cache(
    cache: Path, repository: str, files: Mapping[str, bytes], *, commit: str = "a" * 40, revision: str = "main"
) -> Path:
    """Put a snapshot of a repository into the cache; return its directory."""
    storage = cache / f"models--{repository.replace('/', '--')}"
    snapshot = storage / "snapshots" / commit
    for name, data in files.items():
        blob = storage / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    reference = storage / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    return snapshot


def tree(directory: Path) -> set[str]:
    """Everything below a directory but directories, relative to it."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_symlink() or not path.is_dir()}


def content(directory: Path) -> dict[str, bytes]:
    """The files directly in a directory."""
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}
