"""Reading a model's configuration strictly: wrong types, missing keys and keys nobody understands are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from windlass.errors import LoadError

QUANTIZATION_KEY = "quantization_config"
"""Where config.json says how its matrices are quantized; ``models/quantization_config.py`` reads it."""

MAX_INTEGER = 2**31 - 1
"""The largest integer a configuration may hold: every size must fit the executors' int32."""

_HARMLESS_GROUPS = {
    "what the model is called": "model_type architectures transformers_version name_or_path base_model model_name "
    "finetuning_task task_specific_params license is_llama_config unsloth_fixed unsloth_version",
    "storage and execution (tensors say themselves how they are stored)": "torch_dtype dtype use_bfloat16 use_cache "
    "torchscript attn_implementation use_flash_attn flash_attention pretraining_tp tp_size gradient_checkpointing "
    "use_return_dict return_dict return_dict_in_generate output_attentions output_hidden_states output_scores "
    "is_decoder chunk_size_feed_forward tf_legacy_loss keys_to_ignore_at_inference cache_implementation",
    "training": "initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout "
    "classifier_dropout problem_type id2label label2id num_labels tie_encoder_decoder router_aux_loss_coef "
    "router_jitter_noise output_router_logits aux_loss_alpha seq_aux",
    "tokens and text, read where the tokenizer is": "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id "
    "decoder_start_token_id tokenizer_class prefix model_max_length max_sequence_length seq_length chat_template",
    "sampling, read where the generation settings are": "max_length min_length max_new_tokens do_sample early_stopping "
    "num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id "
    "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens",
}
HARMLESS_KEYS = frozenset(key for keys in _HARMLESS_GROUPS.values() for key in keys.split())
"""Keys of config.json that do not change what the model computes; everything else must be read by its architecture."""


class ConfigReader:
    """A JSON object read key by key; ``finish`` then refuses the keys that nobody read.

    A key whose value is null counts as missing. Every error is a ``LoadError`` that names the file and the key.
    """

    def __init__(self, values: Mapping[str, Any], path: Path, *, section: str = "") -> None:
        self._values = values
        self._path = path
        self._section = section
        self._read: set[str] = set()
        self._own_names: Mapping[str, str] = {}

    def with_defaults(self, defaults: Mapping[str, Any]) -> ConfigReader:
        """A reader of the same object in which keys that are missing have the values that the architecture gives."""
        given = {key: value for key, value in self._values.items() if value is not None or key not in defaults}
        return self._copy({**defaults, **given}, self._own_names)

    def renamed(self, names: Mapping[str, str]) -> ConfigReader:
        """A reader of the same object in which keys of the architecture's own (of ``names``) go by the usual names.

        Errors have the names that are in the file.
        """
        values = {names.get(key, key): value for key, value in self._values.items()}
        reader = self._copy(values, {new: old for old, new in names.items() if old in self._values})
        reader._read = {names.get(key, key) for key in self._read}
        return reader

    def _copy(self, values: Mapping[str, Any], own_names: Mapping[str, str]) -> ConfigReader:
        reader = ConfigReader(values, self._path, section=self._section)
        reader._own_names = own_names
        reader._read = set(self._read)
        return reader

    def error(self, key: str, reason: str) -> LoadError:
        """An error about ``key``, to be raised."""
        return LoadError(self._path, f"{self._name(key)} {reason}")

    def has(self, key: str) -> bool:
        """True when ``key`` is there and not null. Does not count as reading it."""
        return self._values.get(key) is not None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that are there."""
        return tuple(self._values)

    def waits(self, key: str) -> bool:
        """True when ``key`` is there and nobody has read it yet."""
        return self.has(key) and key not in self._read

    def skip(self, key: str) -> None:
        """Count ``key`` as read whatever it holds, since another one overrules it."""
        self._read.add(key)

    def integer(self, key: str, *, default: int | None = None, minimum: int = 1, maximum: int = MAX_INTEGER) -> int:
        """The integer at ``key``, which is required when there is no default."""
        value = self._get(key, default, required=default is None)
        if type(value) is not int:
            raise self.error(key, f"is {_show(value)}, which must be an integer")
        if not minimum <= value <= maximum:
            raise self.error(key, f"is {value}, which must lie in {minimum} .. {maximum}")
        return value

    def optional_integer(self, key: str, *, default: int | None = None) -> int | None:
        """The integer at ``key``, None where it is null, ``default`` where it is missing."""
        if self._values.get(key) is None and (key in self._values or default is None):
            self._read.add(key)
            return None
        return self.integer(key, default=default)

    def optional_number(self, key: str, *, default: float | None = None) -> float | None:
        """The number at ``key``, None where it is null, ``default`` where it is missing."""
        if self._values.get(key) is None and (key in self._values or default is None):
            self._read.add(key)
            return None
        return self.number(key, default=default)

    def number(self, key: str, *, default: float | None = None, above: float = 0.0) -> float:
        """The finite number at ``key``, greater than ``above``; required when there is no default."""
        value = self._get(key, default, required=default is None)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.error(key, f"is {_show(value)}, which must be a finite number")
        if not value > above:
            raise self.error(key, f"is {value}, which must be greater than {above:g}")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """The truth value at ``key``."""
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.error(key, f"is {_show(value)}, which must be true or false")
        return value

    def switch(self, key: str, *, default: bool) -> bool:
        """The truth value at ``key``, where some files have a number instead."""
        return (
            self.integer(key, minimum=0) > 0
            if type(self._values.get(key)) is int
            else self.boolean(key, default=default)
        )

    def choice(self, key: str, choices: Sequence[str], *, default: str) -> str:
        """The string at ``key``, one of ``choices``."""
        value = self._get(key, default)
        if value not in choices:
            raise self.error(key, f"is {_show(value)}; supported: {', '.join(choices)}")
        return str(value)

    def require(self, key: str, only: bool | float, reason: str) -> None:
        """Refuse any value of ``key`` but ``only``, which is also what a missing key means."""
        value = self._get(key, only)
        if isinstance(value, bool) != isinstance(only, bool) or value != only:
            raise self.error(key, f"is {_show(value)}: {reason}; supported: {json.dumps(only)}")

    def strings(self, key: str) -> list[str] | None:
        """The list of strings at ``key``, or None."""
        value = self._get(key, None)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise self.error(key, f"is {_show(value)}, which must be a list of strings")
        return value

    def integers(self, key: str) -> list[int] | None:
        """The list of integers, none negative, at ``key``, or None."""
        value = self._get(key, None)
        if value is not None and not (
            isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_INTEGER for item in value)
        ):
            raise self.error(key, f"is {_show(value)}, which must be a list of integers, none negative")
        return value

    def booleans(self, key: str) -> list[bool] | None:
        """The list of truth values at ``key``, or None."""
        value = self._get(key, None)
        if value is not None and not (isinstance(value, list) and all(type(item) is bool for item in value)):
            raise self.error(key, f"is {_show(value)}, which must be a list of true and false")
        return value

    def numbers(self, key: str, count: int, *, maximum: float = MAX_INTEGER) -> list[float] | None:
        """The list of ``count`` numbers from 1e-6 to ``maximum`` at ``key``, or None."""
        value = self._get(key, None)
        if value is not None and not (
            isinstance(value, list)
            and len(value) == count
            and all(type(item) in (int, float) and 1e-6 <= item <= maximum for item in value)
        ):
            raise self.error(
                key, f"is {_show(value)}, which must be a list of {count} numbers from 1e-6 to {maximum:g}"
            )
        return value

    def section(self, key: str) -> ConfigReader | None:
        """The object at ``key``, to be read and finished like this one, or None."""
        value = self._get(key, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, f"is {_show(value)}, which must be an object")
        return ConfigReader(value, self._path, section=self._name(key))

    def finish(self, *, ignore: Collection[str] = ()) -> None:
        """Refuse what was not read: an unknown key may change what the model computes.

        Names that begin with an underscore are the writing library's own notes; null and empty values switch nothing
        on.
        """
        unknown = sorted(
            key
            for key, value in self._values.items()
            if key not in self._read and key not in ignore and not key.startswith("_") and value not in (None, {}, [])
        )
        if unknown:
            names = ", ".join(self._name(key) for key in unknown)
            supported = ", ".join(sorted(self._read))
            raise LoadError(self._path, f"unknown keys: {names}; they may change the model; supported: {supported}")

    def _get(self, key: str, default: Any, *, required: bool = False) -> Any:
        self._read.add(key)
        value = self._values.get(key)
        if value is not None:
            return value
        if required:
            raise self.error(key, "is missing")
        return default

    def _name(self, key: str) -> str:
        own = self._own_names.get(key, key)
        return f"{self._section}.{own}" if self._section else own


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
