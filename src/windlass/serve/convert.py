"""A Hugging Face directory or a GGUF file into an MLC directory: quantized weights, configuration, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from windlass.errors import LoadError
from windlass.json_files import read_json_object
from windlass.models.definition import ModelDefinition
from windlass.models.registry import mlc_weights, to_mlc_config
from windlass.program.program import WeightSpec
from windlass.quantization import Format, Scheme, Tensor, get_scheme, mlc_pack
from windlass.serve.conversion import Changes, Conversion, stored_name
from windlass.serve.gguf_texts import write_hugging_face_texts
from windlass.serve.new_directory import check_output, new_directory
from windlass.serve.opened import OpenedModel, open_model
from windlass.serve.progress import Progress
from windlass.text.chat_template import read_chat_template
from windlass.text.conv_builtin import BUILTIN
from windlass.text.conv_match import match_builtin
from windlass.text.conv_template import ConversationTemplate
from windlass.text.generation import read_generation_defaults
from windlass.text.tokenizer import Tokenizer
from windlass.weights.directory import MLC_CONFIG_NAME, ModelDirectory
from windlass.weights.loader import check_weights, count_parameters, load_weights, stored_tensors
from windlass.weights.mlc import MlcWriter
from windlass.weights.source import StoredType, WeightSource

_TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tekken.json",
    "tiktoken.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
"""Read in place of ``conv_template`` where the model's own template has no equal among conversation templates."""

_DTYPES: dict[Format, StoredType] = {Format.F32: "float32", Format.F16: "float16", Format.BF16: "bfloat16"}


def convert(
    source: Path,
    output: Path,
    quantization: str,
    *,
    conv_template: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write the model in ``source`` as an MLC directory ``output``, quantized.

    The directory appears whole or not at all: it is written beside its place and moved there at the end. The blocks of
    a GGUF file become floats first and are then quantized anew, which loses.

    Args:
        source: a Hugging Face model directory, or a GGUF file.
        output: a directory that does not exist, or is empty.
        quantization: a scheme's name; q0f32 and q4f32_1 store float32 rounded to bfloat16, as MLC LLM does.
        conv_template: name of a common conversation template; None finds one that renders what the model's own chat
            template renders. Where none does, ``conv_template`` is left out and the chat template itself comes along.
        force: replace a model at ``output``.
        progress: told how far the work is.

    Returns:
        What became of the weights.

    Raises:
        LoadError: the model cannot be read, or the output is not empty or cannot be written.
        ValueError: there is no scheme of this name.
    """
    scheme = get_scheme(quantization)
    source, output = Path(source), Path(output)
    check_output(source, output, force=force)
    with ExitStack() as stack:
        opened = open_model(source, stack, whole=True)
        definition, weights = opened.definition, opened.source
        if opened.kind == "mlc" or weights is None:
            raise LoadError(source, f"this is an MLC directory already, stored as {opened.scheme}")
        check_weights(definition.program.weights, weights, ignored=definition.ignored_tensors)
        texts = opened.directory
        if texts is None:
            texts = write_hugging_face_texts(opened, Path(stack.enter_context(TemporaryDirectory())))
        chat_config = _chat_config(texts, definition, scheme, conv_template)
        with new_directory(source, output, force=force) as part:
            changes = Changes()
            _write_weights(part, opened, weights, scheme, changes, progress)
            for name in (*_TOKENIZER_FILES, *_TEMPLATE_FILES):
                if (texts.path / name).is_file():
                    shutil.copyfile(texts.path / name, part / name)
            text = json.dumps(chat_config, indent=2, ensure_ascii=False)
            (part / MLC_CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
            conversion = changes.finish(part)
    return Conversion(output, conversion.num_bytes, conversion.changes)


def _write_weights(
    part: Path, opened: OpenedModel, source: WeightSource, scheme: Scheme, changes: Changes, progress: Progress | None
) -> None:
    specs = {spec.name: spec for spec in mlc_weights(opened.definition)}
    writer = MlcWriter(part)

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("quantizing", done, total)

    for name, tensor in load_weights(
        list(specs.values()),
        source,
        scheme,
        ignored=opened.definition.ignored_tensors,
        anew=opened.kind == "gguf",
        progress=report,
    ):
        stored = stored_tensors(specs[name], source)
        if tensor.format.grouped:
            for one in stored:
                changes.add(f"quantized to {scheme.name}", stored_name(one))
        else:
            changes.to_float(stored, Format.BF16 if tensor.format is Format.F32 else tensor.format)
        _write_weight(writer, specs[name], tensor, scheme, source.path)
    writer.finish(count_parameters(list(specs.values())))


def _write_weight(writer: MlcWriter, spec: WeightSpec, tensor: Tensor, scheme: Scheme, path: Path) -> None:
    def stacked(array: NDArray[Any]) -> NDArray[Any]:
        """The matrices of experts have an axis of their own."""
        return array.reshape(spec.experts, -1, *array.shape[1:]) if spec.experts > 1 else array

    if tensor.format.grouped:
        words, scales = mlc_pack(tensor, scheme, role=spec.role)
        stem = spec.name.removesuffix(".weight")
        writer.add(f"{stem}.q_weight", stacked(words), "uint32")
        writer.add(f"{stem}.q_scale", stacked(scales), _DTYPES[scheme.model_dtype])
        return
    try:
        writer.add(spec.name, stacked(tensor.data), _DTYPES[tensor.format])
    except ValueError as error:
        raise LoadError(path, f"tensor {spec.name}: {error}") from None


def _chat_config(
    directory: ModelDirectory, definition: ModelDefinition, scheme: Scheme, conv_template: str | None
) -> dict[str, Any]:
    """Return the content of mlc-chat-config.json."""
    source = directory.path
    tokenizer = Tokenizer.from_directory(source) if Tokenizer.is_in(source) else None
    model_config = to_mlc_config(directory.model_type, directory.config, directory.config_path)
    vocab_size = definition.vocab_size
    conversation = _conversation(source, tokenizer, conv_template)
    return {
        "version": "0.1.0",
        "model_type": directory.model_type,
        "quantization": scheme.name,
        "model_config": model_config,
        "vocab_size": vocab_size,
        "context_window_size": model_config.get("context_window_size", -1),
        "sliding_window_size": model_config.get("sliding_window_size", -1),
        "prefill_chunk_size": model_config["prefill_chunk_size"],
        "attention_sink_size": model_config.get("attention_sink_size", -1),
        "tensor_parallel_shards": model_config["tensor_parallel_shards"],
        "pipeline_parallel_stages": model_config.get("pipeline_parallel_stages", 1),
        "active_vocab_size": min(vocab_size, tokenizer.vocab_size) if tokenizer else vocab_size,
        **_generation_settings(directory, tokenizer),
        "tokenizer_files": [name for name in _TOKENIZER_FILES if (source / name).is_file()],
        "tokenizer_info": _tokenizer_info(source),
        **({} if conversation is None else {"conv_template": conversation}),
        "model_task": "chat",
        "embedding_metadata": None,
    }


def _conversation(source: Path, tokenizer: Tokenizer | None, name: str | None) -> dict[str, Any] | None:
    if name is not None:
        ConversationTemplate.from_json(name)  # refuses unknown names
        return dict(BUILTIN[name])
    if tokenizer is None:
        return None
    template = read_chat_template(source, tokenizer)
    return None if template is None else match_builtin(template, tokenizer)


def _generation_settings(directory: ModelDirectory, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the sampling defaults and special ids; MLC LLM's own defaults where the model has none."""
    eos_id = tokenizer.eos_id if tokenizer else None
    defaults = read_generation_defaults(directory.path, directory.config, None, eos_id)
    stops = sorted(defaults.stop_token_ids)
    settings: dict[str, Any] = {
        "temperature": 1.0 if defaults.temperature is None else defaults.temperature,
        "presence_penalty": defaults.presence_penalty or 0.0,
        "frequency_penalty": defaults.frequency_penalty or 0.0,
        "repetition_penalty": 1.0 if defaults.repetition_penalty is None else defaults.repetition_penalty,
        "top_p": 1.0 if defaults.top_p is None else defaults.top_p,
        # MLC LLM has no defaults for these two and passes over them.
        "top_k": defaults.top_k,
        "min_p": defaults.min_p,
        "pad_token_id": _token_id(directory, "pad_token_id"),
        "bos_token_id": _token_id(directory, "bos_token_id"),
        "eos_token_id": (stops[0] if len(stops) == 1 else stops) if stops else None,
    }
    return {key: value for key, value in settings.items() if key not in ("top_k", "min_p") or value is not None}


def _token_id(directory: ModelDirectory, key: str) -> int | None:
    generation = read_json_object(directory.path / "generation_config.json", missing_ok=True)
    value = generation.get(key, directory.config.get(key))
    return value if type(value) is int else None


def _tokenizer_info(source: Path) -> dict[str, Any]:
    """Return what MLC LLM detects in tokenizer.json, by its rules."""
    tokenizer = read_json_object(source / "tokenizer.json", missing_ok=True)
    decoders = _steps(tokenizer.get("decoder"), "decoders")
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    methods = {"ByteLevel": "byte_level", "ByteFallback": "byte_fallback"}
    found = [methods[step["type"]] for step in decoders if step.get("type") in methods]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "token_postproc_method": found[-1] if found else "byte_fallback",
        "prepend_space_in_encode": any(
            step.get("type") == "Prepend" and step.get("prepend") == "\u2581" for step in normalizers
        ),
        "strip_space_in_decode": any(all(step.get(key) == strip[key] for key in strip) for step in decoders),
    }


def _steps(component: object, key: str) -> list[Mapping[str, Any]]:
    """Return the steps of a tokenizer component: those of a Sequence, or itself."""
    if not isinstance(component, Mapping):
        return []
    steps = component.get(key) if component.get("type") == "Sequence" else [component]
    return [step for step in steps if isinstance(step, Mapping)] if isinstance(steps, list) else []
