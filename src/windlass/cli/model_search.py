"""The models that lie around on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Root (a key of config.model_roots) -> where below it a model directory lies.
PATTERNS: Mapping[str, tuple[str, ...]] = {
    "here": ("", "*", "*/*"),
    "huggingface": ("models--*/snapshots/*",),
    "mlc": ("model_weights/hf/*/*",),
}


@dataclass(frozen=True)
class FoundModel:
    """A directory, or a GGUF file, that looks like a model the engine can load."""

    path: Path
    kind: Literal["hf", "mlc", "gguf"]
    num_bytes: int
    """Of the file, or of those directly in the directory, links followed."""


def find_models(roots: Mapping[str, Path]) -> list[FoundModel]:
    """Return the models below ``roots`` (see ``config.model_roots``), each once, in the order of the roots.

    What cannot be read is passed over: this is a look around, not a load.
    """
    found: dict[Path, FoundModel] = {}
    for root, path in roots.items():
        for pattern in PATTERNS[root]:
            for directory in _directories(path, pattern):
                model = _look_at(directory)
                if model is not None:
                    found.setdefault(directory.resolve(), model)
                for file in _gguf_files(directory):
                    found.setdefault(file.path.resolve(), file)
    return list(found.values())


def _directories(root: Path, pattern: str) -> Iterator[Path]:
    try:
        candidates = sorted(root.glob(pattern)) if pattern else [root]
    except OSError:
        return
    for candidate in candidates:
        if not any(part.startswith(".") for part in candidate.relative_to(root).parts):
            yield candidate


def _gguf_files(directory: Path) -> list[FoundModel]:
    from windlass.weights.gguf import first_files  # with numpy

    try:
        files = [file for file in first_files(directory) if file.is_file()]
        return [FoundModel(file, "gguf", file.stat().st_size) for file in files]
    except OSError:
        return []


def _look_at(directory: Path) -> FoundModel | None:
    kind: Literal["hf", "mlc"]
    try:
        if (directory / "mlc-chat-config.json").is_file():
            kind = "mlc"
        elif (directory / "config.json").is_file() and any(directory.glob("*.safetensors")):
            kind = "hf"
        else:
            return None
        return FoundModel(directory, kind, sum(file.stat().st_size for file in directory.iterdir() if file.is_file()))
    except OSError:
        return None
