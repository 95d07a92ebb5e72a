"""Removing a model from the caches of downloaded models, with what loads have made of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from windlass.config import EngineConfig, model_roots
from windlass.errors import LoadError
from windlass.machine import mapping_processes
from windlass.serve.kept_weights import kept_names, load_cache
from windlass.serve.last_used import use_name
from windlass.serve.opened import open_model
from windlass.weights.hub_names import HUB_PREFIX
from windlass.weights.stored_models import StoredModel, find_models, stored_model


@dataclass(frozen=True, slots=True)
class Removal:
    """What removing a model takes away, looked up and not done yet.

    Attributes:
        name: what the model was called.
        directory: what goes as a whole, a directory in a cache; None when only ``files`` go.
        files: what goes one by one.
        num_bytes: of all that on the disk.
        kept: names of files in the cache of packed weights.
    """

    name: str
    directory: Path | None
    files: tuple[Path, ...]
    num_bytes: int
    kept: tuple[str, ...]

    def users(self) -> list[int]:
        """Return the processes that have files of the model mapped, as engines have, as far as that can be told."""
        files = set(self.files)
        if self.directory is not None:
            files |= {file for file in self.directory.rglob("*") if file.is_file()}
        cache = load_cache(EngineConfig())
        if cache is not None:
            files |= {cache.directory / name for name in self.kept}
        return mapping_processes(files)

    def run(self) -> int:
        """Remove everything; return how many bytes that were, packed weights included.

        Raises:
            LoadError: something cannot be removed.
        """
        try:
            if self.directory is not None:
                # Renamed first: what is half removed is not to be taken for a model.
                gone = self.directory.with_name(f".{self.directory.name}.{uuid.uuid4().hex[:8]}.removed")
                self.directory.rename(gone)
                shutil.rmtree(gone)
            for file in self.files:
                file.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # it is not empty
                    file.parent.rmdir()
        except OSError as error:
            raise LoadError(error.filename or self.name, f"cannot be removed: {error.strerror}") from error
        cache = load_cache(EngineConfig())
        return self.num_bytes + (sum(map(cache.remove, self.kept)) if cache is not None else 0)


def plan_removal(name: str) -> Removal:
    """Find out what removing the model ``name`` takes away.

    ``org/name`` stands for all that was downloaded of a repository, ``org/name@revision`` for one revision and
    ``org/name:file`` for one GGUF model of it.

    Raises:
        LoadError: there is no such model, or it is in none of the caches: nothing else is removed.
    """
    roots = model_roots()
    model = stored_model(name, roots)
    if model.root not in ("huggingface", "mlc"):
        raise LoadError(name, "only downloaded models are removed, and this one is in none of their caches")
    if model.root == "mlc":
        directory = _checked(model.path, roots["mlc"] / "model_weights" / "hf", depth=2)
        return Removal(name, directory, (), _size(directory), _kept([model]))
    root = roots["huggingface"]
    storage = model.path if model.kind == "partial" else _storage_of(model.path, root)
    storage = _checked(storage, root, depth=1)
    of_storage = [one for one in find_models({"huggingface": root}) if storage in one.path.parents]
    repository = storage.name.removeprefix("models--").replace("--", "/")
    going = of_storage if name.removeprefix(HUB_PREFIX) == repository else _same_files(model, of_storage)
    if len(going) == len(of_storage):
        return Removal(name, storage, (), _size(storage), _kept(going))
    files = _exclusive_files(going, storage)
    return Removal(name, None, files, sum(file.lstat().st_size for file in files), _kept(going))


def _same_files(model: StoredModel, others: list[StoredModel]) -> list[StoredModel]:
    """The model, and what else has its path: a revision may have several names."""
    return [other for other in others if other.path == model.path]


def _storage_of(path: Path, root: Path) -> Path:
    """Return the directory of the repository in the cache ``root`` that has ``path``."""
    parts = path.absolute().relative_to(root.absolute()).parts
    return root / parts[0]


def _checked(directory: Path, root: Path, *, depth: int) -> Path:
    """Return the directory, which lies so deep below the root of a cache, and is no link to elsewhere."""
    resolved = directory.resolve()
    if directory.is_symlink() or resolved.parents[depth - 1] != root.resolve():
        raise LoadError(directory, "is a link out of the cache, and is not removed")
    return directory


def _exclusive_files(going: list[StoredModel], storage: Path) -> tuple[Path, ...]:
    """Return what goes of a repository's directory with some of its models, and no other file there needs."""
    files = {file for model in going for file in model.files}
    for snapshot in (model.path for model in going if model.kind != "gguf"):
        files |= {file for file in snapshot.rglob("*") if file.is_file()}
        references = [file for file in storage.glob("refs/**/*") if file.is_file()]
        files |= {file for file in references if file.read_text(errors="replace").strip() == snapshot.name}
    inside = storage.resolve()
    outside = [file for file in files if not file.parent.resolve().is_relative_to(inside)]
    if outside:
        raise LoadError(outside[0], "is outside of the cache, and is not removed")
    needed = {_blob(file) for file in storage.glob("snapshots/**/*") if file not in files}
    blobs = {_blob(file) for file in files} - needed
    return (*sorted(files), *sorted(blob for blob in blobs if blob is not None and blob.parent == storage / "blobs"))


def _blob(file: Path) -> Path | None:
    """Return what a file of a snapshot is a link to, not followed further."""
    if not file.is_symlink():
        return None
    return Path(os.path.normpath(file.parent / file.readlink()))


def _size(directory: Path) -> int:
    return sum(file.lstat().st_size for file in directory.rglob("*") if file.is_file() and not file.is_symlink())


def _kept(models: list[StoredModel]) -> tuple[str, ...]:
    """Return the names of what loads have kept of models in the cache."""
    cache = load_cache(EngineConfig())
    if cache is None:
        return ()
    found: dict[str, None] = {}
    for model in models:
        found[use_name(model.path)] = None
        try:
            with ExitStack() as stack:
                opened = open_model(model.path, stack)
                if opened.source is not None:
                    found.update(dict.fromkeys(kept_names(opened.definition, opened.source)))
        except LoadError:
            continue  # what cannot be opened was not loaded either
    return tuple(name for name in found if (cache.directory / name).is_file())
