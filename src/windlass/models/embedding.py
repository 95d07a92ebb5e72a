"""Models for embeddings: what sentence-transformers writes beside them, and decoders without their head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from windlass.errors import LoadError
from windlass.json_files import read_json_list, read_json_object
from windlass.models.definition import ModelDefinition
from windlass.program.ops import HiddenStates, Logits
from windlass.program.pooling import Pooling

MODULES_NAME = "modules.json"

_KINDS: dict[str, Literal["last", "cls", "mean"]] = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
}
_HARMLESS = ("word_embedding_dimension", "embedding_dimension", "include_prompt")


def read_pooling(directory: Path) -> Pooling | None:
    """Read how a directory's model makes embeddings, from ``modules.json``; None when there is no such file.

    Raises:
        LoadError: a file is broken, or asks for something that is not supported.
    """
    path = directory / MODULES_NAME
    modules = read_json_list(path, missing_ok=True)
    if modules is None:
        return None
    kinds: list[str] = []
    pooling: Pooling | None = None
    for module in modules:
        kind = module.get("type") if isinstance(module, dict) else None
        kinds.append(str(kind).rpartition(".")[2])
        if kinds[-1] == "Pooling":
            pooling = _read_module(directory, module.get("path"), path)
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or pooling is None:
        raise LoadError(path, f"has the modules {', '.join(kinds)}; supported: Transformer, Pooling, Normalize")
    return replace(pooling, normalize=kinds[-1] == "Normalize")


def _read_module(directory: Path, name: Any, path: Path) -> Pooling:
    # The name comes from outside, and must not lead out of the directory.
    if not isinstance(name, str) or Path(name).name != name:
        raise LoadError(path, f"the path of a module is {name!r}, which must be the name of a directory")
    file = directory / name / "config.json"
    config = read_json_object(file)
    mode = config.pop("pooling_mode", None)
    kinds = [_KINDS[key] for key in _KINDS if config.pop(key, False) is True]
    if mode in ("lasttoken", "cls", "mean"):
        kinds = ["last" if mode == "lasttoken" else mode]
    others = [key for key, value in config.items() if key not in _HARMLESS and value not in (False, None)]
    if len(kinds) != 1 or others:
        named = ", ".join([*kinds, *others]) or "none"
        raise LoadError(file, f"asks for the pooling {named}; supported: one of {', '.join(_KINDS)}")
    return Pooling(kinds[0], normalize=False)


def as_embedding(definition: ModelDefinition, pooling: Pooling) -> ModelDefinition:
    """Return the model with its hidden states for a result, instead of logits."""
    program = definition.program
    last = program.ops[-1]
    if isinstance(last, Logits):
        used_elsewhere = any(last.weight in _names(op) for op in program.ops[:-1])
        weights = tuple(spec for spec in program.weights if used_elsewhere or spec.name != last.weight)
        program = replace(program, ops=(*program.ops[:-1], HiddenStates(last.x)), weights=weights)
        # Checkpoints of a model without its head have no prefix.
        prefixes = tuple((f"{name}.", f"model.{name}.") for name in ("embed_tokens", "layers", "norm"))
        definition = replace(
            definition,
            program=program,
            ignored_tensors=(*definition.ignored_tensors, r"lm_head\.weight"),
            stored_prefixes=(*definition.stored_prefixes, *prefixes),
        )
    return replace(definition, pooling=pooling)


def _names(op: Any) -> list[Any]:
    return [getattr(op, name) for name in op.__slots__]
