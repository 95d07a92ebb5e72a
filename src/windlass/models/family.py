"""A family of models: how its program is written, and how each kind of file says what its config.json would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from windlass.models.config import ConfigReader
from windlass.models.definition import ModelDefinition

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Shapes of a checkpoint's tensors, by Hugging Face's names."""


@dataclass(frozen=True, slots=True)
class GgufDialect:
    """How GGUF files hold a family.

    ``architecture`` is what ``general.architecture`` says; where several families share one, ``marker`` is a key that
    is there, and not 0, for this one only, or that has ``marker_value``. ``keys`` and ``tensors`` are added to what
    most families have in common (``gguf_config.py``, ``weights/gguf_names.py``): metadata keys without the
    architecture, and stems of tensors with templates of their Hugging Face names, see ``hugging_face_tensors``.
    ``paired`` are the stems whose rows are ordered for rotation in pairs, with the key that says how many heads they
    have. ``read`` does the rest: it reads metadata and fills in the config.json.
    """

    architecture: str
    marker: str | None = None
    marker_value: int | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    paired: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[ConfigReader, dict[str, Any], Shapes], None] | None = None


@dataclass(frozen=True, slots=True)
class MlcDialect:
    """How mlc-chat-config.json describes a family.

    ``renamed`` has MLC's names of fields that config.json calls otherwise. ``fields`` are Hugging Face's keys, beyond
    those that all families have, that MLC always writes, ``optional`` those that are added when they are not null or
    false, and ``constants`` are written as they are. With ``untied`` MLC stores the head even where it is the
    embedding. ``prefill_chunk_size`` is the most that MLC writes. ``read`` changes the translated config.json and
    returns the context length; ``write`` changes the fields that are written.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    untied: bool = False
    prefill_chunk_size: int = 8192
    read: Callable[[ConfigReader, dict[str, Any], int], int] | None = None
    write: Callable[[dict[str, Any], Mapping[str, Any]], None] | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """What the registry knows of a family. ``model_type`` is its name in config.json and in MLC directories."""

    model_type: str
    define: Callable[[ConfigReader], ModelDefinition]
    gguf: GgufDialect | None = None
    mlc: MlcDialect | None = None
