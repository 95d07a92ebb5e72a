"""From what a user calls a model to a path: one on the disk, one downloaded before, or a Hugging Face repository."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from windlass.config import model_roots
from windlass.errors import DownloadError, LoadError
from windlass.json_files import read_json_object
from windlass.weights.hub_names import (
    ACCEPTED,
    HUB_PREFIX,
    INDEX_NAME,
    HubName,
    choose_files,
    index_shards,
    parse_hub_name,
)

if TYPE_CHECKING:
    from windlass.weights.hub_download import HubFile, Report

_TIMEOUT = 30.0
"""Seconds that a hub may be silent."""


def resolve_model(model: str | os.PathLike[str], *, report: Report | None = None) -> Path:
    """Return where a model is on this machine: a path, or ``org/name`` as it was downloaded before.

    ``HF://org/name[@revision][:file]`` is downloaded as by ``pull_model``; what the hub does not give now is taken from
    the cache if it is there.

    Args:
        model: the path or name.
        report: told how far a download is.

    Raises:
        LoadError: there is no such directory, file or name, or huggingface_hub is not installed.
        DownloadError: the download failed, and the model was not downloaded before.
    """
    name = os.fspath(model)
    if name.startswith(HUB_PREFIX):
        parsed = _parsed(name)
        try:
            return pull_model(name, report=report)
        except DownloadError:
            cached = find_cached(parsed)
            if cached is None:
                raise
            return cached
    path = Path(name).expanduser()
    if path.exists():
        return path
    hub_name = parse_hub_name(name)
    cached = None if hub_name is None else find_cached(hub_name)
    if cached is not None:
        return cached
    hint = "" if hub_name is None else f"; to download it from Hugging Face, say {HUB_PREFIX}{name}"
    raise LoadError(name, f"there is no such directory{hint}")


def pull_model(name: str, *, report: Report | None = None) -> Path:
    """Download what is not here yet of a model of a Hugging Face hub, and return its path.

    Only the files that an engine needs are downloaded. They go to huggingface_hub's cache, whose environment variables
    hold: ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``, ``HF_TOKEN``, ``HF_ENDPOINT``. An interrupted download is
    continued by the next one; files are checked against the hub's checksums before they appear.

    Args:
        name: ``[HF://]org/name[@revision]``, with ``:file.gguf`` or ``:Q4_K_M`` for one of several GGUF models.
        report: told how far it is.

    Returns:
        The directory of the model, or the (first) GGUF file.

    Raises:
        DownloadError: as its ``code`` says.
        LoadError: the name is none, or huggingface_hub is not installed.
    """
    hub_name = _parsed(name)
    try:
        import huggingface_hub
    except ImportError:
        raise LoadError(name, 'downloading needs huggingface_hub: pip install "windlass[hub]"') from None
    told = _Told(report)
    try:
        return _Pull(hub_name, huggingface_hub.HfApi(library_name="windlass"), told).run()
    except LoadError:
        raise
    except Exception as error:
        if error is told.error:
            raise
        code, reason = _reason(error, hub_name)
        raise DownloadError(name, reason, code=code) from error


def find_cached(name: HubName) -> Path | None:
    """Return where a model that was downloaded before is, by huggingface_hub or MLC-LLM; None where it is not.

    The hub is not asked.
    """
    storage = _storage(name)
    revision = name.revision or "main"
    try:
        commit = (storage / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = revision
    snapshot = storage / "snapshots" / commit
    files = [str(file.relative_to(snapshot)) for file in snapshot.rglob("*") if file.is_file()]
    try:
        return snapshot / (choose_files(name, files).first or "")
    except DownloadError:
        pass
    mlc = model_roots()["mlc"] / "model_weights" / "hf" / name.repository
    return mlc if name == HubName(name.repository) and mlc.is_dir() else None


def _parsed(name: str) -> HubName:
    parsed = parse_hub_name(name)
    if parsed is None:
        raise LoadError(name, f"not a Hugging Face model; accepted: {ACCEPTED}")
    return parsed


def _storage(name: HubName) -> Path:
    """Return where the cache has the files of a repository."""
    return model_roots()["huggingface"] / f"models--{name.repository.replace('/', '--')}"


class _Told:
    """Passes on what is reported; ``error`` is what that raised."""

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self.error: BaseException | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        try:
            if self._report is not None:
                self._report(phase, done, total)
        except BaseException as error:
            self.error = error
            raise


class _Pull:
    """One download."""

    def __init__(self, name: HubName, api: Any, report: Report) -> None:
        self._name = name
        self._api = api
        self._report = report
        self._storage = _storage(name)
        self._commit = ""

    def run(self) -> Path:
        self._report("asking the hub", 0, 0)
        info = self._api.model_info(
            self._name.repository, revision=self._name.revision, files_metadata=True, timeout=_TIMEOUT
        )
        self._commit = info.sha or ""
        files = _listed(info.siblings or (), self._name)
        choice = choose_files(self._name, files)
        wanted = [*choice.companions, *choice.weights]
        with _quiet_library():
            if choice.has_index:
                wanted += index_shards(read_json_object(self._index(files[INDEX_NAME])), files)
            self._download([files[file] for file in wanted])
            return self._snapshot(wanted) / (choice.first or "")

    def _index(self, file: HubFile | None) -> Path:
        """Return where the index is, whose snapshot is not yet."""
        if file is None:
            return self._snapshot([INDEX_NAME]) / INDEX_NAME
        self._download([file])
        return self._storage / "blobs" / file.checksum

    def _download(self, files: list[HubFile | None]) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        from windlass.weights.hub_download import download_blobs

        headers = build_hf_headers(library_name="windlass")

        def fetch(name: str, file: BinaryIO, start: int) -> None:
            url = hf_hub_url(self._name.repository, name, revision=self._commit, endpoint=self._api.endpoint)
            http_get(url, file, resume_size=start, headers=headers)

        known = [file for file in files if file is not None]
        locks = self._storage.parent / ".locks" / self._storage.name
        download_blobs(f"{HUB_PREFIX}{self._name}", known, self._storage, locks, fetch, self._report)

    def _snapshot(self, files: list[str]) -> Path:
        """Have the library put the files together, and download those of which the hub gives no checksum."""
        import huggingface_hub

        patterns = [glob.escape(file) for file in files]
        # By the revision, not the commit: the library notes which commit it is.
        return Path(
            huggingface_hub.snapshot_download(
                self._name.repository,
                revision=self._name.revision,
                cache_dir=self._storage.parent,
                allow_patterns=patterns,
                endpoint=self._api.endpoint,
                library_name="windlass",
            )
        )


def _listed(siblings: Iterable[Any], origin: HubName) -> dict[str, HubFile | None]:
    """Return the files of a repository, with None for those of which the hub says too little to download them here.

    Raises:
        DownloadError: a name would lead out of the cache, or a checksum, which becomes the name of a file, is none.
    """
    from windlass.weights.hub_download import HubFile

    files: dict[str, HubFile | None] = {}
    for sibling in siblings:
        name, large = sibling.rfilename, sibling.lfs is not None
        size, checksum = (sibling.lfs.size, sibling.lfs.sha256) if large else (sibling.size, sibling.blob_id)
        known = checksum is not None and size is not None
        digits = r"[0-9a-f]{64}" if large else r"[0-9a-f]{40}"
        if set(name.split("/")) & {"", ".", ".."} or (known and not re.fullmatch(digits, str(checksum))):
            raise DownloadError(str(origin), f"the hub's list of files is damaged at {name!r}", code="damaged")
        files[name] = HubFile(name, int(size), checksum, is_git=not large) if known else None
    return files


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """Keep the library from drawing bars of its own."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is False:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _reason(error: Exception, name: HubName) -> tuple[str, str]:
    """Return a code and a line for what went wrong, whatever version of huggingface_hub and its HTTP client said it."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{name.repository}"
        return "forbidden", f"access to this model must be asked for on {page}; then log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "not_found", "the model has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "not_found",
            "there is no such Hugging Face model, or it is private and needs a token (`hf auth login`, HF_TOKEN)",
        )
    if isinstance(error, errors.OfflineModeIsEnabled) or (
        isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    ):
        return "unreachable", "not downloaded yet, and HF_HUB_OFFLINE forbids it"
    if status == 401:
        return "unauthorized", "the hub does not accept the token of HF_TOKEN or `hf auth login` (401)"
    if status == 403:
        return "forbidden", "the hub refuses access with this token (403)"
    if status == 404:
        return "not_found", "the hub has no such file (404)"
    if status is not None:
        return "unreachable", f"the hub answers {status}; try again later"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full", "the disk is full"
    if isinstance(error, errors.LocalEntryNotFoundError) or _is_of_the_network(error):
        return "unreachable", f"the Hugging Face hub cannot be reached ({_line(error)})"
    return "failed", f"the download failed ({type(error).__name__}): {_line(error)}"


def _is_of_the_network(error: Exception) -> bool:
    """Whether it comes from requests or httpx, the clients of different versions, which are not imported here."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or not names.isdisjoint(
        {"TransportError", "RequestException"}
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
