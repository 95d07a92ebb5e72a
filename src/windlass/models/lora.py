"""``adapter_config.json``: what PEFT says about a LoRA adapter, read strictly (github.com/huggingface/peft)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from windlass.models.config import ConfigReader
from windlass.models.patterns import NamePattern

CONFIG_NAME = "adapter_config.json"

_OF_TRAINING = (
    "auto_mapping base_model_name_or_path revision inference_mode lora_dropout peft_version megatron_core "
    "qalora_group_size eva_config runtime_config ensure_weight_tying"
)
"""Keys that do not change what a trained adapter computes."""
_REFUSED = {
    "use_dora": "adapters with magnitudes (DoRA) are not supported",
    "use_qalora": "QALoRA is not supported",
    "lora_bias": "adapters with biases are not supported",
}
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""How the matrices may have begun: all others change the weights of the model too, which are then not the model's."""
_READ_BELOW = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights")

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class _Names:
    """A choice of modules: by one pattern for the whole name, or by names and ends of names."""

    pattern: NamePattern | None = None
    names: frozenset[str] = frozenset()
    everything: bool = False

    def __contains__(self, module: str) -> bool:
        if self.pattern is not None:
            return self.pattern.matches(module)
        parts = module.split(".")
        return self.everything or any(".".join(parts[i:]) in self.names for i in range(len(parts)))


@dataclass(frozen=True, slots=True)
class _ByModule:
    """A number that is another one for modules whose names end as a pattern says; the first pattern counts."""

    default: float
    patterns: Sequence[tuple[NamePattern, float]]

    def of(self, module: str) -> float:
        return next((value for pattern, value in self.patterns if pattern.matches_end(module)), self.default)


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What an adapter is for, and how strong it is. Modules go by the names they have in the Hugging Face model."""

    _ranks: _ByModule
    _alphas: _ByModule
    _by_root: bool
    _targets: _Names
    _excluded: _Names
    _layers: frozenset[int] | None
    _layer_numbers: Sequence[re.Pattern[str]]

    def rank(self, module: str) -> int:
        """The rows of A and columns of B at ``module``."""
        return int(self._ranks.of(module))

    def scale(self, module: str) -> float:
        """What B A x is multiplied by: alpha / rank, or alpha / sqrt(rank) with rsLoRA (Kalajdzievski, 2023)."""
        rank = self.rank(module)
        return self._alphas.of(module) / (math.sqrt(rank) if self._by_root else rank)

    def is_target(self, module: str) -> bool:
        """Whether the adapter has matrices for ``module``."""
        return module in self._targets and module not in self._excluded and self._is_in_layers(module)

    def _is_in_layers(self, module: str) -> bool:
        if self._layers is None or module in self._targets.names:
            return True
        found = (pattern.match(module) for pattern in self._layer_numbers)
        return next((int(match["layer"]) in self._layers for match in found if match is not None), False)


def read_lora_config(values: Mapping[str, Any], path: Path) -> LoraConfig:
    """Read the configuration of a LoRA adapter; ``path`` is the file it came from.

    Raises:
        LoadError: a value is wrong, or it asks for more than plain LoRA; the message says what is accepted.
    """
    config = ConfigReader(values, path)
    config.choice("peft_type", ("LORA",), default="")
    config.choice("task_type", ("CAUSAL_LM",), default="CAUSAL_LM")
    config.choice("bias", ("none",), default="none")
    for key, reason in _REFUSED.items():
        config.require(key, False, reason)
    # It says how the model stores the weight, not how the adapter stores its matrices.
    config.boolean("fan_in_fan_out", default=False)
    start = values.get("init_lora_weights")
    if not (start is None or isinstance(start, (bool, str))) or start not in _PLAIN_STARTS:
        raise config.error(
            "init_lora_weights",
            f"is {str(start)[:60]!r}, which changes the weights of the model too; accepted are adapters converted to "
            "plain LoRA (PEFT: save_pretrained with path_initial_model_for_weight_conversion)",
        )
    targets = _names(config, values, "target_modules")
    if targets is None:
        raise config.error("target_modules", "is missing; accepted are a list of names and a regular expression")
    layers = _layers(config, values)
    if layers is not None and not targets.names:
        raise config.error("layers_to_transform", "is for target_modules that are a list of names")
    result = LoraConfig(
        _ByModule(config.integer("r", default=8), _patterns(config, values, "rank_pattern", ConfigReader.integer)),
        _ByModule(config.number("lora_alpha", default=8), _patterns(config, values, "alpha_pattern", _number)),
        config.boolean("use_rslora", default=False),
        targets,
        _names(config, values, "exclude_modules") or _Names(),
        layers,
        _layer_numbers(config, values),
    )
    off = {key for key, value in values.items() if value is False or value == ""}
    config.finish(ignore={*_OF_TRAINING.split(), *_READ_BELOW, *off})
    return result


def _number(section: ConfigReader, key: str) -> float:
    return section.number(key)


def _names(config: ConfigReader, values: Mapping[str, Any], key: str) -> _Names | None:
    value = values.get(key)
    if value is None or value == []:
        return None
    if value == "all-linear":
        return _Names(everything=True)
    if isinstance(value, str):
        return _Names(pattern=_compiled(config, key, value))
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return _Names(names=frozenset(value))
    raise config.error(key, "must be a list of names, or a regular expression")


def _layers(config: ConfigReader, values: Mapping[str, Any]) -> frozenset[int] | None:
    value = values.get("layers_to_transform")
    if value is None or value == []:
        return None
    numbers = value if isinstance(value, list) else [value]
    if not all(type(number) is int for number in numbers):
        raise config.error("layers_to_transform", "must be the number of a layer, or a list of such numbers")
    return frozenset(numbers)


def _layer_numbers(config: ConfigReader, values: Mapping[str, Any]) -> list[re.Pattern[str]]:
    """What finds the number of a module's layer: the first number in its name, or that behind a given part of it."""
    value = values.get("layers_pattern") or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(
        isinstance(name, str) and re.fullmatch(r"[\w.]+", name) for name in names
    ):
        raise config.error("layers_pattern", "must be the name of a list of layers, such as layers, or several of them")
    if not names:
        return [re.compile(r".*?\.[^.]*\.(?P<layer>\d+)\.")]
    return [re.compile(rf"(?:.*?\.)?{re.escape(name)}\.(?P<layer>\d+)\.") for name in names]


def _patterns(
    config: ConfigReader, values: Mapping[str, Any], key: str, read: Callable[[ConfigReader, str], Value]
) -> list[tuple[NamePattern, Value]]:
    section = config.section(key)
    return [] if section is None else [(_compiled(config, key, name), read(section, name)) for name in values[key]]


def _compiled(config: ConfigReader, key: str, pattern: str) -> NamePattern:
    try:
        return NamePattern(pattern)
    except ValueError as error:
        raise config.error(key, f"has {pattern[:60]!r}, a regular expression that is not accepted: {error}") from None
