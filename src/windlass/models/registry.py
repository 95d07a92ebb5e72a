"""From a model type and its configuration to a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from windlass.errors import LoadError
from windlass.models import mlc_config
from windlass.models.config import QUANTIZATION_KEY, ConfigReader
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect
from windlass.program.program import Part, WeightSpec

_MODULES = {
    "bert": "bert",
    "cohere": "cohere",
    "cohere2": "cohere",
    "deepseek_v2": "deepseek",
    "deepseek_v3": "deepseek",
    "exaone4": "exaone4",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt_bigcode": "gpt_bigcode",
    "gpt_neox": "gpt_neox",
    "gpt_oss": "gpt_oss",
    "granite": "granite",
    "llama": "llama",
    "llama4": "llama4",
    "llama4_text": "llama4",
    "ministral3": "ministral3",
    "mistral": "mistral",
    "mistral3": "ministral3",
    "mixtral": "mixtral",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "olmoe": "olmoe",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
}
"""Which module has the family of a ``model_type``."""


class _Families(Mapping[str, Family]):
    """Every family by its ``model_type``. Its module is imported when it is asked for: all take as long as a load."""

    def __getitem__(self, model_type: str) -> Family:
        module = import_module(f"windlass.models.{_MODULES[model_type]}")
        found = (one for one in vars(module).values() if isinstance(one, Family))
        return next(family for family in found if family.model_type == model_type)

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


FAMILIES: Mapping[str, Family] = _Families()


def find_gguf_family(metadata: Mapping[str, Any], path: Path) -> tuple[str, GgufDialect]:
    """Return the ``model_type`` of the GGUF file at ``path``, and how such files hold the family.

    Raises:
        LoadError: the architecture is not supported.
    """
    architecture = metadata.get("general.architecture")
    found = [
        (family.model_type, family.gguf)
        for family in FAMILIES.values()
        if family.gguf is not None and family.gguf.architecture == architecture
    ]
    # Those that a key tells from the rest come first.
    for model_type, dialect in sorted(found, key=lambda one: one[1].marker is None):
        value = metadata.get(f"{architecture}.{dialect.marker}")
        if dialect.marker is None or (value if dialect.marker_value is None else value == dialect.marker_value):
            return model_type, dialect
    supported = dict.fromkeys(family.gguf.architecture for family in FAMILIES.values() if family.gguf is not None)
    raise LoadError(
        path, f"general.architecture is {architecture!r}, which is not supported; supported: {', '.join(supported)}"
    )


def define_model(
    model_type: str, config: Mapping[str, Any], path: Path, *, dialect: Literal["hf", "mlc"]
) -> ModelDefinition:
    """Write the program of a model.

    Args:
        model_type: the architecture, as config.json or mlc-chat-config.json names it.
        config: the object of config.json ("hf"), or ``model_config`` of mlc-chat-config.json ("mlc").
        path: the file it came from, for error messages.
        dialect: which of the two it is.

    Raises:
        LoadError: the architecture is not supported, or the configuration lacks, mistypes or contradicts something,
            or holds something that may change what the model computes and is not understood.
    """
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise LoadError(path, f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    if dialect == "mlc":
        mlc = _mlc_dialect(model_type, path)
        translated, context_length = mlc_config.from_mlc_config(mlc, config, path)
        return replace(family.define(ConfigReader(translated, path)), context_length=context_length)
    values = dict(config)
    if config.get(QUANTIZATION_KEY) is not None:
        from windlass.models.quantization_config import is_of_family  # for such checkpoints only

        ConfigReader(config, path).section(QUANTIZATION_KEY)  # read_quantization says what is in that object
        if not is_of_family(config):
            del values[QUANTIZATION_KEY]
    return family.define(ConfigReader(values, path))


def to_mlc_config(model_type: str, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the ``model_config`` object of mlc-chat-config.json for a Hugging Face ``config`` read from ``path``.

    Raises:
        LoadError: as ``define_model``, or MLC directories cannot hold this family.
    """
    definition = define_model(model_type, config, path, dialect="hf")
    return mlc_config.to_mlc_config(_mlc_dialect(model_type, path), definition, config)


def to_hf_config(model_type: str, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the config.json that says the same as the ``model_config`` object ``config`` of mlc-chat-config.json.

    Raises:
        LoadError: as ``define_model``, or MLC directories cannot hold this family.
    """
    return mlc_config.from_mlc_config(_mlc_dialect(model_type, path), config, path)[0]


def mlc_weights(definition: ModelDefinition) -> list[WeightSpec]:
    """Return the weights that an MLC directory of a model has, with the Hugging Face tensors that they are made of."""
    family = FAMILIES[definition.model_type]
    specs = [
        replace(spec, parts=(Part(spec.parts[0].name),)) if spec.mlc_as_stored else spec
        for spec in definition.program.weights
    ]
    if family.mlc is not None and family.mlc.untied and all(spec.role != "head" for spec in specs):
        table = next(spec for spec in specs if spec.role == "embedding")
        specs.append(replace(table, name="lm_head.weight", role="head"))
    return specs


def _mlc_dialect(model_type: str, path: Path) -> MlcDialect:
    known = {name: family.mlc for name, family in FAMILIES.items() if family.mlc is not None}
    if isinstance(model_type, str) and model_type in known:
        return known[model_type]
    supported = ", ".join(known)
    raise LoadError(path, f"model_type {model_type!r} is not supported in MLC directories; supported: {supported}")
