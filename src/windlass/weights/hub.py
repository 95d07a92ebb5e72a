"""From what a user calls a model to a local directory: a path, or a Hugging Face repository to download."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from windlass.errors import LoadError

HUB_PREFIX = "HF://"

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_REPOSITORY = re.compile(rf"(?P<id>{_PART}/{_PART})(@(?P<revision>[A-Za-z0-9][\w./-]*))?", re.ASCII)
_FILES = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "*.model",
    "merges.txt",
    "params_shard_*.bin",
    "tokenizer_model",
]
_NOT_FILES = ["*/*", "consolidated*"]
"""What lies in folders, and Mistral's second copy of the weights, is not read."""


def resolve_model(model: str | os.PathLike[str]) -> Path:
    """Return the local directory of a model, downloading it first when it is named ``HF://org/name[@revision]``.

    Downloads are huggingface_hub's: its cache, its environment variables (``HF_HOME``, ``HF_HUB_OFFLINE``,
    ``HF_TOKEN``, ``HF_ENDPOINT``), its progress bars on a terminal. What is in the cache and current is not downloaded
    again; without a network the cached copy is used.

    Raises:
        LoadError: there is no such directory or repository, huggingface_hub is not installed, or the download failed.
    """
    name = os.fspath(model)
    if not name.startswith(HUB_PREFIX):
        path = Path(name).expanduser()
        if path.exists():
            return path
        looks_remote = re.fullmatch(_REPOSITORY, name) is not None
        hint = f"; to download it from Hugging Face, say {HUB_PREFIX}{name}" if looks_remote else ""
        raise LoadError(name, f"there is no such directory{hint}")
    match = re.fullmatch(_REPOSITORY, name.removeprefix(HUB_PREFIX))
    if match is None or ".." in name or "--" in match["id"]:
        raise LoadError(name, f"not a Hugging Face model; accepted: {HUB_PREFIX}organisation/name[@revision]")
    return _download(name, match["id"], match["revision"])


def _download(name: str, repository: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise LoadError(name, 'downloading needs huggingface_hub: pip install "windlass[hub]"') from None
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=_FILES, ignore_patterns=_NOT_FILES
            )
        )
    except Exception as error:
        raise LoadError(name, _reason(error)) from error


def _reason(error: Exception) -> str:
    """Say in one line what went wrong, whatever version of huggingface_hub and of its HTTP client said it."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "access to this model must be asked for on its Hugging Face page; then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such Hugging Face model, or it is private and needs `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the model has no such revision"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return "not downloaded yet, and HF_HUB_OFFLINE forbids it"
        return "not downloaded yet, and the Hugging Face hub cannot be reached"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    return f"the download failed ({type(error).__name__}): {' '.join(str(error).split())[:300]}"
