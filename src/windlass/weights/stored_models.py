"""The models that lie on this machine: where they are, what they are called, and which files are theirs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from windlass.errors import LoadError
from windlass.json_files import read_json_object
from windlass.weights.gguf import find_gguf, first_files, split_names
from windlass.weights.hub import find_cached
from windlass.weights.hub_names import HUB_PREFIX, INDEX_NAME, parse_hub_name
from windlass.weights.mlc import CACHE_NAMES

Kind = Literal["hf", "mlc", "gguf", "partial"]

_HERE = ("", "*", "*/*")
_MLC = "model_weights/hf/*/*"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A directory, or a GGUF file, that looks like a model.

    Attributes:
        name: what commands call it; ``resolve_model`` finds it by that.
        path: the directory or (first) file; of a ``partial`` download that of its repository in the cache.
        kind: ``partial`` is a download that was interrupted before there was a model.
        root: the key of ``config.model_roots`` under which it was found; "" for a path elsewhere.
        files: the model's own.
        missing: names of files that it needs and does not have.
    """

    name: str
    path: Path
    kind: Kind
    root: str
    files: tuple[Path, ...]
    missing: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Size of its files, links followed."""
        total = 0
        for file in self.files:
            with contextlib.suppress(OSError):
                total += file.stat().st_size
        return total


def find_models(roots: Mapping[str, Path]) -> list[StoredModel]:
    """Return the models below ``roots`` (see ``config.model_roots``), each once, in the order of the roots.

    What cannot be read is passed over: this is a look around, not a load.
    """
    search = {"here": _models_here, "huggingface": _hub_models, "mlc": _mlc_models}
    found: dict[Path, StoredModel] = {}
    for root, path in roots.items():
        for model in search[root](path):
            found.setdefault(model.path.resolve(), model)
    return list(found.values())


def stored_model(name: str, roots: Mapping[str, Path]) -> StoredModel:
    """Return the model of this name or path. The hub is not asked.

    Raises:
        LoadError: there is none, or the name stands for several.
    """
    path = None if name.startswith(HUB_PREFIX) else Path(name).expanduser()
    if path is None or not path.exists():
        hub_name = parse_hub_name(name)
        path = None if hub_name is None else find_cached(hub_name)
    known = find_models(roots)
    if path is None:
        wanted = name.removeprefix(HUB_PREFIX)
        partial = next((model for model in known if model.kind == "partial" and model.name == wanted), None)
        if partial is not None:
            return partial
        raise LoadError(name, "there is no such model on this machine; `windlass list` shows those that are")
    path = find_gguf(path) or path
    resolved = path.resolve()
    model = next((model for model in known if model.path.resolve() == resolved), None)
    if model is None:
        model = _gguf_model(path, name, "") if path.is_file() else _directory_model(path, name, "")
    if model is None:
        raise LoadError(
            path, "this is not a model: it has neither config.json nor mlc-chat-config.json nor a GGUF file"
        )
    return model


def _models_here(root: Path) -> Iterator[StoredModel]:
    for pattern in _HERE:
        for directory in _directories(root, pattern):
            name = str(directory.relative_to(root))
            model = _directory_model(directory, name, "here")
            if model is not None:
                yield model
            for file in _gguf_files(directory):
                yield _gguf_model(file, str(file.relative_to(root)), "here")


def _mlc_models(root: Path) -> Iterator[StoredModel]:
    for directory in _directories(root, _MLC):
        model = _directory_model(directory, f"{directory.parent.name}/{directory.name}", "mlc")
        if model is not None:
            yield model


def _hub_models(root: Path) -> Iterator[StoredModel]:
    for storage in _directories(root, "models--*"):
        repository = storage.name.removeprefix("models--").replace("--", "/")
        references = _references(storage)
        found = False
        snapshots = _directories(storage, "snapshots/*")
        for snapshot in sorted(snapshots, key=lambda path: references.get(path.name) != "main"):
            revision = references.get(snapshot.name, snapshot.name)
            name = repository if revision == "main" else f"{repository}@{revision}"
            for model in _snapshot_models(snapshot, name):
                found = True
                yield model
        blobs = [] if found else [file for file in _files_of(storage / "blobs") if file.suffix == ".incomplete"]
        if blobs:
            yield StoredModel(repository, storage, "partial", "huggingface", tuple(blobs))


def _snapshot_models(snapshot: Path, name: str) -> Iterator[StoredModel]:
    directory = _directory_model(snapshot, name, "huggingface")
    if directory is not None:
        yield directory
    files = [file for folder in (snapshot, *_directories(snapshot, "*")) for file in _gguf_files(folder)]
    for file in files:
        alone = directory is None and len(files) == 1
        yield _gguf_model(file, name if alone else f"{name}:{file.relative_to(snapshot)}", "huggingface")


def _references(storage: Path) -> dict[str, str]:
    """Return the names that commits have: branches and tags; of several ``main``."""
    names: dict[str, str] = {}
    folder = storage / "refs"
    with contextlib.suppress(OSError, ValueError):
        for file in sorted(folder.rglob("*"), key=lambda file: file.name == "main"):
            if file.is_file():
                names[file.read_text(encoding="ascii").strip()] = str(file.relative_to(folder))
    return names


def _directories(root: Path, pattern: str) -> Iterator[Path]:
    try:
        candidates = sorted(root.glob(pattern)) if pattern else [root]
    except OSError:
        return
    for candidate in candidates:
        if not any(part.startswith(".") for part in candidate.relative_to(root).parts) and candidate.is_dir():
            yield candidate


def _files_of(directory: Path) -> list[Path]:
    try:
        return sorted(file for file in directory.iterdir() if file.is_file())
    except OSError:
        return []


def _gguf_files(directory: Path) -> list[Path]:
    try:
        return [file for file in first_files(directory) if file.is_file()]
    except OSError:
        return []


def _gguf_model(file: Path, name: str, root: str) -> StoredModel:
    parts = [file.with_name(part) for part in split_names(file.name)]
    there = tuple(part for part in parts if part.is_file())
    missing = tuple(part.name for part in parts if part not in there)
    return StoredModel(name, file, "gguf", root, there, missing)


def _directory_model(directory: Path, name: str, root: str) -> StoredModel | None:
    files = _files_of(directory)
    names = {file.name for file in files}
    # Other models may lie beside this one.
    own = tuple(file for file in files if file.suffix != ".gguf")
    if "mlc-chat-config.json" in names:
        return StoredModel(name, directory, "mlc", root, own, _missing(_mlc_shards(directory), names))
    if "config.json" in names and any(file.suffix == ".safetensors" for file in own):
        return StoredModel(name, directory, "hf", root, own, _missing(_shards(directory), names))
    return None


def _missing(needed: Iterable[object], names: set[str]) -> tuple[str, ...]:
    return tuple(sorted({name for name in needed if isinstance(name, str) and name not in names}))


def _shards(directory: Path) -> list[object]:
    weight_map = _object(directory / INDEX_NAME).get("weight_map")
    return list(weight_map.values()) if isinstance(weight_map, Mapping) else []


def _mlc_shards(directory: Path) -> list[object]:
    tables = [name for name in CACHE_NAMES if (directory / name).is_file()]
    if not tables:
        return [CACHE_NAMES[0]]
    records = _object(directory / tables[0]).get("records")
    shards = records if isinstance(records, list) else []
    return [shard.get("dataPath") for shard in shards if isinstance(shard, Mapping)]


def _object(path: Path) -> Mapping[str, object]:
    """The object in a file of JSON; an empty one where it cannot be read, which a load will complain about."""
    try:
        return read_json_object(path, missing_ok=True)
    except LoadError:
        return {}
