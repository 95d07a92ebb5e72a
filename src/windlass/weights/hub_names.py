"""What a model on a hub is called, and which of a repository's files an engine needs."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from windlass.errors import DownloadError
from windlass.weights.gguf import split_names, stem_of

HUB_PREFIX = "HF://"
ACCEPTED = f"{HUB_PREFIX}organisation/name[@revision][:file.gguf or quantization]"

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_NAME = re.compile(
    rf"(?P<repository>{_PART}/{_PART})(@(?P<revision>[A-Za-z0-9][\w./-]*))?(:(?P<file>[A-Za-z0-9][\w./+-]*))?", re.ASCII
)
_TEXTS = ("README.md", "LICENSE*", "LICENCE*")
_COMPANIONS = (
    "*.json",
    "*.jinja",
    "*.model",
    "merges.txt",
    "vocab.txt",
    "*.tiktoken",
    "tokenizer.model.v*",
    "tokenizer_model",
    "additional_chat_templates/*.jinja",
    "*_Pooling/config.json",
    *_TEXTS,
)
_SHARDS = "params_shard_*.bin"
_PROJECTOR = "mmproj"
"""What files with a vision model's other half begin with: no language model of its own."""

INDEX_NAME = "model.safetensors.index.json"
_SINGLE_NAME = "model.safetensors"
_SECOND_COPY = "consolidated"
"""What Mistral's second copy of the weights begins with."""


@dataclass(frozen=True, slots=True)
class HubName:
    """``organisation/name[@revision][:file]``.

    ``file`` chooses one of a repository's GGUF models: the file, or a part of its name such as ``Q4_K_M``.
    """

    repository: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        """As it is written."""
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{self.repository}{revision}{'' if self.file is None else f':{self.file}'}"


def parse_hub_name(text: str) -> HubName | None:
    """Return the name that ``text`` is, with or without ``HF://``; None when it is none."""
    match = _NAME.fullmatch(text.removeprefix(HUB_PREFIX))
    if match is None or ".." in text or "--" in match["repository"]:
        return None
    return HubName(match["repository"], match["revision"], match["file"])


@dataclass(frozen=True, slots=True)
class Choice:
    """The files of a model in a repository.

    ``companions`` are small. ``weights`` are those that are known by the names alone; ``has_index`` says that the file
    ``INDEX_NAME`` names them instead. ``first`` is the (first) file of a GGUF model, None where the model is the
    directory.
    """

    companions: tuple[str, ...]
    weights: tuple[str, ...]
    first: str | None = None
    has_index: bool = False


def choose_files(name: HubName, files: Collection[str]) -> Choice:
    """Choose what ``name`` means of the files of its repository.

    Raises:
        DownloadError: there is no such model among them, or the name does not say which one.
    """
    top = [file for file in files if "/" not in file]
    if name.file is not None or not _is_directory_model(top):
        return _choose_gguf(name, files)
    companions = _matching(files, _COMPANIONS)
    if "mlc-chat-config.json" in files:
        return Choice(companions, _matching(top, (_SHARDS,)))
    if INDEX_NAME in files:
        return Choice(companions, (), has_index=True)
    if _SINGLE_NAME in files:
        return Choice(companions, (_SINGLE_NAME,))
    return Choice(companions, tuple(sorted(file for file in top if _is_safetensors(file))))


def index_shards(index: Mapping[str, object], files: Collection[str]) -> tuple[str, ...]:
    """Return the files that an index names. What is no file of the repository is for the loader to complain about."""
    weight_map = index.get("weight_map")
    named = weight_map.values() if isinstance(weight_map, Mapping) else ()
    return tuple(sorted({file for file in named if isinstance(file, str) and file in files}))


def _is_directory_model(top: Collection[str]) -> bool:
    return "mlc-chat-config.json" in top or any(_is_safetensors(file) for file in top)


def _is_safetensors(file: str) -> bool:
    return file.endswith(".safetensors") and not file.startswith(_SECOND_COPY)


def _choose_gguf(name: HubName, files: Collection[str]) -> Choice:
    models = {split_files(file)[0]: split_files(file) for file in files if file.endswith(".gguf")}
    language = [first for first in models if not PurePosixPath(first).name.startswith(_PROJECTOR)]
    found = language if name.file is None else _named(name.file, models, language)
    if not language and name.file is None:
        pickles = ", ".join(sorted(file for file in files if file.endswith((".bin", ".pt", ".pth")))[:3])
        reason = f"there are only {pickles}, which can run code" if pickles else "there are no weights"
        raise DownloadError(str(name), f"{reason}; needed: safetensors, MLC shards or GGUF", code="not_found")
    if len(found) != 1:
        there = ", ".join(sorted(language)) or "none"
        if name.file is None:
            example = f"{name.repository}:{PurePosixPath(min(language)).name}"
            reason = f"has several GGUF models; name one, as in {example}; there are: {there}"
        else:
            reason = f"{name.file!r} fits {len(found) or 'none'} of its GGUF models; there are: {there}"
        raise DownloadError(str(name), reason, code="not_found")
    missing = [file for file in models[found[0]] if file not in files]
    if missing:
        raise DownloadError(str(name), f"a file of the split model is missing: {missing[0]}", code="not_found")
    return Choice(_matching(files, _TEXTS), models[found[0]], first=found[0])


def split_files(file: str) -> tuple[str, ...]:
    """Return the files of the model that a GGUF file of a repository is one of, the first of them first."""
    path = PurePosixPath(file)
    return tuple(str(path.with_name(part)) for part in split_names(path.name))


def _named(wanted: str, models: Mapping[str, tuple[str, ...]], language: list[str]) -> list[str]:
    """Return the models that ``wanted`` may mean: a file, else what names end in, else what is a part of them."""
    if wanted.endswith(".gguf"):
        exact = [first for first, parts in models.items() if wanted in parts]
        return exact or [
            first for first, parts in models.items() if any(PurePosixPath(part).name == wanted for part in parts)
        ]
    stems = {first: stem_of(PurePosixPath(first).name) for first in language}
    word = rf"(?:^|[-._]){re.escape(wanted)}"
    for pattern in (rf"{word}$", rf"{word}(?:[-._]|$)"):
        found = [first for first, stem in stems.items() if re.search(pattern, stem, re.IGNORECASE)]
        if found:
            return found
    return []


def _matching(files: Collection[str], patterns: Collection[str]) -> tuple[str, ...]:
    """Return the files that one of the patterns matches; ``*`` stays within a folder."""
    return tuple(
        sorted(
            file
            for file in files
            for pattern in patterns
            if pattern.count("/") == file.count("/") and fnmatch.fnmatchcase(file, pattern)
        )
    )
