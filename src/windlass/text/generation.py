"""The sampling defaults and end tokens that a model directory states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from windlass.errors import LoadError
from windlass.json_files import read_json_object

# Name -> (least, greatest), inclusive.
_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-6, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What a model's files say about sampling; None where they say nothing.

    Attributes:
        stop_token_ids: tokens that end an answer.
        temperature: 0 is greedy; also 0 when the files turn sampling off.
        top_k: 0 is off.
    """

    stop_token_ids: frozenset[int] = frozenset()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


def read_generation_defaults(
    directory: Path, config: Mapping[str, Any], mlc_config: Mapping[str, Any] | None, eos_id: int | None
) -> GenerationDefaults:
    """The defaults of a model directory.

    A Hugging Face directory ends an answer at every end id of generation_config.json, config.json and
    tokenizer_config.json, and takes its sampling from generation_config.json. An MLC directory takes both from
    mlc-chat-config.json. (MLC-LLM itself stops only where the conversation template says. The ``eos_token_id`` of the
    same file is used here as well when it is given: nothing after it is worth reading.)

    Args:
        directory: the model directory.
        config: the architecture's config.json.
        mlc_config: the mlc-chat-config.json of an MLC directory, else None.
        eos_id: id of the tokenizer's ``eos_token``, or None.

    Raises:
        LoadError: a file that cannot be read, or a value out of range.
    """
    if mlc_config is not None:
        path = directory / "mlc-chat-config.json"
        return _defaults(mlc_config, _ids(mlc_config, path), path)
    path = directory / "generation_config.json"
    generation = read_json_object(path, missing_ok=True)
    stops = _ids(generation, path) | _ids(config, directory / "config.json")
    return _defaults(generation, stops | ({eos_id} if eos_id is not None else set()), path)


def _defaults(values: Mapping[str, Any], stops: set[int], path: Path) -> GenerationDefaults:
    numbers = {name: _number(values, name, path) for name in _RANGES}
    if values.get("do_sample") is False:
        numbers["temperature"] = 0.0
    top_k = values.get("top_k")
    if top_k is not None and (type(top_k) is not int or top_k < -1):
        raise LoadError(path, f"top_k must be an integer of at least 0 (or -1: off), not {top_k!r}")
    return GenerationDefaults(
        stop_token_ids=frozenset(stops), top_k=None if top_k is None else max(top_k, 0), **numbers
    )


def _number(values: Mapping[str, Any], name: str, path: Path) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    least, greatest = _RANGES[name]
    if type(value) not in (int, float) or not least <= value <= greatest:
        raise LoadError(path, f"{name} must be a number from {least:g} to {greatest:g}, not {value!r}")
    return float(value)


def _ids(values: Mapping[str, Any], path: Path) -> set[int]:
    value = values.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token_id) is not int or token_id < 0 for token_id in ids):
        raise LoadError(path, f"eos_token_id must be a token id or a list of token ids, not {value!r}")
    return set(ids)
