"""A GGUF file or an MLC directory into a Hugging Face directory of floats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from windlass.errors import LoadError
from windlass.models.definition import ModelDefinition
from windlass.models.registry import to_hf_config
from windlass.program.program import Part, WeightSpec
from windlass.quantization import Format, Tensor, cast, take_rows
from windlass.serve.conversion import FORMAT_NAMES, Changes, Conversion
from windlass.serve.gguf_texts import check_family, write_hugging_face_texts
from windlass.serve.new_directory import check_output, new_directory
from windlass.serve.opened import OpenedModel, open_model
from windlass.serve.progress import Progress
from windlass.weights.directory import HF_CONFIG_NAME, ModelDirectory
from windlass.weights.loader import load_weights, stored_tensors
from windlass.weights.safetensors_writer import SafetensorsWriter
from windlass.weights.source import WeightSource

FloatName = Literal["f32", "f16", "bf16"]

COPIED = (
    "tokenizer.model",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
    "LICENSE",
)
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_PIECE_NUMBERS = 1 << 24


def convert_to_hf(
    source: Path, output: Path, dtype: FloatName, *, force: bool = False, progress: Progress | None = None
) -> Conversion:
    """Write the model in ``source`` as a Hugging Face directory ``output``, all weights as floats of ``dtype``.

    The directory appears whole or not at all. What quantized weights stand for is exact in f32, and rounded to the
    nearest number in f16 and bf16.

    Args:
        source: a GGUF file or an MLC directory.
        output: a directory that does not exist, or is empty.
        dtype: what the weights become.
        force: replace a model at ``output``.
        progress: told how far the work is.

    Returns:
        What became of the weights.

    Raises:
        LoadError: the model cannot be read or written so, or the output is not empty or cannot be written.
        ValueError: there is no such ``dtype``.
    """
    if dtype not in get_args(FloatName):
        raise ValueError(f"dtype must be one of {', '.join(get_args(FloatName))}, not {dtype!r}")
    source, output = Path(source), Path(output)
    check_output(source, output, force=force)
    with ExitStack() as stack:
        opened = open_model(source, stack, whole=True)
        if opened.kind == "hf":
            raise LoadError(source, "this is a Hugging Face directory already")
        check_family(opened)
        with new_directory(source, output, force=force) as part:
            notes: tuple[str, ...] = ()
            if opened.directory is None:
                config = dict(write_hugging_face_texts(opened, part).config)
            else:
                config, notes = _write_mlc_texts(opened.directory, part)
            format_ = Format(dtype)
            config["torch_dtype"] = FORMAT_NAMES[format_]
            _write_json(part / HF_CONFIG_NAME, config)
            changes = Changes()
            _write_weights(part, opened, format_, changes, progress)
            conversion = changes.finish(part, notes)
    return Conversion(output, conversion.num_bytes, conversion.changes, conversion.notes)


def _write_weights(
    part: Path, opened: OpenedModel, format_: Format, changes: Changes, progress: Progress | None
) -> None:
    definition, source = opened.definition, opened.source
    if source is None:
        raise ValueError("the weights are not open")
    specs = {spec.name: spec for spec in definition.program.weights}
    shapes = {name: _part_shapes(spec, definition, source) for name, spec in specs.items()}
    planned = [(name, shape) for parts in shapes.values() for name, shape in parts]

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("writing weights", done, total)

    with SafetensorsWriter(part, planned, format_) as writer:
        weights = load_weights(list(specs.values()), source, ignored=definition.ignored_tensors, progress=report)
        for name, tensor in weights:
            if tensor.shape != specs[name].shape:
                raise LoadError(source.path, f"{name} is not stored as Hugging Face has it")
            stored = stored_tensors(specs[name], source)
            packed = opened.scheme if tensor.format.grouped else None
            changes.to_float(stored[:1] if packed else stored, format_, packed)
            try:
                for piece in _pieces(tensor):
                    writer.write(cast(piece, format_).data)
            except ValueError as error:
                raise LoadError(source.path, f"tensor {name}: {error}") from None
        writer.finish()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the rows of a tensor as float32, some at a time, one below the other."""
    if len(tensor.shape) == 1:
        yield Tensor(Format.F32, tensor.shape, tensor.dequantize())
        return
    step = max(1, _PIECE_NUMBERS // tensor.shape[1])
    for start in range(0, tensor.shape[0], step):
        rows = take_rows(tensor, np.arange(start, min(start + step, tensor.shape[0])))
        yield Tensor(Format.F32, rows.shape, rows.dequantize())


def _part_shapes(
    spec: WeightSpec, definition: ModelDefinition, source: WeightSource
) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape of the tensors that a weight consists of, in the order of its rows."""
    plain = all(part == Part(part.name, num_rows=part.num_rows) for part in spec.parts)
    if spec.experts > 1 or not plain:
        raise LoadError(source.path, f"{spec.name} cannot be written as Hugging Face has it")
    head_dim, program = definition.program.head_dim, definition.program
    rows = {
        1: [spec.shape[0]],
        2: [spec.shape[0] // 2] * 2,
        3: [definition.num_heads * head_dim, program.num_kv_heads * head_dim, program.num_kv_heads * head_dim],
    }.get(len(spec.parts), [])
    if sum(rows) != spec.shape[0]:
        raise LoadError(source.path, f"the parts of {spec.name} cannot be told from each other")
    return [(part.name, (count, *spec.shape[1:])) for part, count in zip(spec.parts, rows, strict=True)]


def _write_mlc_texts(directory: ModelDirectory, target: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write what an MLC directory has besides weights; return its config.json, and what could not be carried over."""
    mlc = directory.mlc or {}
    config = to_hf_config(directory.model_type, directory.config, directory.config_path)
    ids = {key: mlc[key] for key in _IDS if mlc.get(key) is not None}
    values = {"model_type": directory.model_type, **{key: value for key, value in config.items() if value is not None}}
    for name in COPIED:
        if (directory.path / name).is_file():
            shutil.copyfile(directory.path / name, target / name)
    sampling = {key: mlc[key] for key in _SAMPLING if mlc.get(key) is not None}
    _write_json(target / "generation_config.json", {**ids, **sampling})
    has_template = any((target / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))
    if not has_template and (target / "tokenizer_config.json").is_file():
        has_template = "chat_template" in json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    notes = ("the conversation template of MLC has no equal here: the model has no chat template",)
    return {**values, **ids}, notes if mlc.get("conv_template") and not has_template else ()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
