"""A model whose files are open, whatever their format: everything is known of it, and nothing large has been read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from windlass.models.config import QUANTIZATION_KEY
from windlass.models.definition import ModelDefinition
from windlass.models.embedding import as_embedding, read_pooling
from windlass.models.registry import define_model, find_gguf_family
from windlass.text.text_model import TextModel
from windlass.text.text_pack import TextCache
from windlass.weights.directory import ModelDirectory, open_model_directory
from windlass.weights.gguf import GgufModel, find_gguf, read_gguf
from windlass.weights.source import WeightSource


@dataclass(frozen=True, slots=True, eq=False)
class OpenedModel:
    """A model on the disk.

    Attributes:
        path: the directory, or the (first) GGUF file.
        model_type: the family, as the registry knows it.
        config: what config.json says; of a GGUF file what its config.json would; of MLC ``model_config``.
        definition: the model without its weights.
        source: the open weights; None where they were not asked for.
        directory: of the formats that are directories.
        gguf: of a GGUF file.
    """

    path: Path
    model_type: str
    config: Mapping[str, Any]
    definition: ModelDefinition
    source: WeightSource | None
    directory: ModelDirectory | None = None
    gguf: GgufModel | None = None

    @property
    def kind(self) -> Literal["hf", "mlc", "gguf"]:
        """The format."""
        return "gguf" if self.directory is None else self.directory.dialect

    @property
    def scheme(self) -> str | None:
        """The name of the scheme of an MLC directory."""
        return None if self.directory is None else self.directory.scheme

    @property
    def active_vocab_size(self) -> object:
        """How many ids the files say may be drawn, if they do."""
        return None if self.directory is None else (self.directory.mlc or {}).get("active_vocab_size")

    def load_text(self, *, dummy: bool = False, cache: TextCache | None = None) -> TextModel:
        """Load tokenizer, chat template, stop tokens and sampling defaults.

        Args:
            dummy: a directory without a tokenizer gets a placeholder.
            cache: where what takes long to make is looked for and kept.

        Raises:
            LoadError: a file is missing, broken, or says what this engine does not know.
        """
        if self.directory is None:
            return TextModel.from_gguf(self.path, {} if self.gguf is None else self.gguf.metadata, cache)
        directory = self.directory
        return TextModel.load(directory.path, directory.config, directory.mlc, dummy=dummy, cache=cache)


def open_model(path: Path, stack: ExitStack, *, weights: bool = True, whole: bool = False) -> OpenedModel:
    """Open the model at ``path``: a Hugging Face or MLC directory, or a GGUF file.

    Args:
        path: the directory or file.
        stack: closes the files of the weights.
        weights: open these too.
        whole: a model for embeddings keeps its head, which computes logits.

    Raises:
        LoadError: there is no model, or one that cannot be run; the message says why.
    """
    gguf = find_gguf(path)
    if gguf is not None:
        return _open_gguf(gguf, stack, weights=weights, whole=whole)
    directory = open_model_directory(path)
    definition = define_model(directory.model_type, directory.config, directory.config_path, dialect=directory.dialect)
    pooling = None if whole else read_pooling(path)
    if pooling is not None:
        definition = as_embedding(definition, pooling)
    groupings = None
    if directory.dialect == "hf" and directory.config.get(QUANTIZATION_KEY) is not None:
        from windlass.models.quantization_config import read_quantization  # for such checkpoints only

        groupings = read_quantization(directory.config, directory.config_path)
    source = None
    if weights:
        source = stack.enter_context(closing(directory.open_weights(groupings)))
        if directory.dialect == "hf":
            source.rename(definition.stored_prefixes)
    return OpenedModel(path, directory.model_type, directory.config, definition, source, directory=directory)


def _open_gguf(path: Path, stack: ExitStack, *, weights: bool, whole: bool) -> OpenedModel:
    # For this format only.
    from windlass.models.gguf_config import from_gguf_metadata, read_gguf_pooling
    from windlass.weights.gguf_names import hugging_face_tensors, read_rope_factors

    gguf = read_gguf(path)
    model_type, dialect = find_gguf_family(gguf.metadata, path)
    tensors = hugging_face_tensors(gguf, dialect.tensors, dialect.paired)
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    config = from_gguf_metadata(dialect, gguf.metadata, shapes, read_rope_factors(gguf), path)
    definition = define_model(model_type, config, path, dialect="hf")
    pooling = None if whole else read_gguf_pooling(dialect, gguf.metadata, path)
    if pooling is not None:
        definition = as_embedding(definition, pooling)
    source = stack.enter_context(closing(WeightSource(path, tensors))) if weights else None
    return OpenedModel(path, model_type, config, definition, source, gguf=gguf)
