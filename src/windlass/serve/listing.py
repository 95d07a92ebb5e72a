"""What there is to say of the models on this machine without loading them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

from windlass.config import EngineConfig, model_roots
from windlass.errors import LoadError
from windlass.serve.kept_weights import load_cache
from windlass.serve.last_used import last_used
from windlass.weights.directory import ModelDirectory, open_model_directory
from windlass.weights.gguf import GgufModel, read_gguf
from windlass.weights.stored_models import StoredModel, find_models


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model and what its files say of it.

    Attributes:
        model: where it is.
        architecture: as the files name it; None where they cannot be read, or it is not downloaded as a whole.
        quantization: the scheme or type of the weights, such as ``q4f16_1``, ``Q4_K`` or ``bfloat16``; None as before.
        last_used: when it was last loaded, in seconds since 1970; None where that is not known.
        problem: why it could not be loaded, as far as that can be told, or None.
    """

    model: StoredModel
    architecture: str | None = None
    quantization: str | None = None
    last_used: float | None = None
    problem: str | None = None


def list_models() -> list[ListedModel]:
    """Return the models in the working directory and in the caches of Hugging Face and MLC-LLM."""
    return [list_model(model) for model in find_models(model_roots())]


def list_model(model: StoredModel) -> ListedModel:
    """Return what the files of a model say of it. What is wrong with them is said in ``problem``, nothing is raised."""
    used = last_used(model.path, load_cache(EngineConfig()))
    problem = None
    if model.kind == "partial":
        return ListedModel(model, problem="the download was interrupted; `windlass pull` goes on with it")
    if model.missing:
        problem = f"files are missing: {', '.join(model.missing[:3])}{', ...' if len(model.missing) > 3 else ''}"
    try:
        if model.kind == "gguf":
            if problem is not None:
                return ListedModel(model, last_used=used, problem=problem)
            gguf = read_gguf(model.path)
            return ListedModel(model, gguf_architecture(gguf), ", ".join(list(tensor_types(gguf))[:2]) or None, used)
        directory = open_model_directory(model.path)
    except LoadError as error:
        return ListedModel(model, last_used=used, problem=problem or str(error))
    return ListedModel(model, directory.model_type, directory_quantization(directory), used, problem)


def gguf_architecture(gguf: GgufModel) -> str | None:
    """Return what a GGUF file calls its architecture."""
    architecture = gguf.metadata.get("general.architecture")
    return architecture if isinstance(architecture, str) else None


def tensor_types(gguf: GgufModel) -> dict[str, int]:
    """Return how many numbers the matrices of a GGUF model have in each type, the most first."""
    counts: Counter[str] = Counter()
    for tensor in gguf.tensors:
        if len(tensor.shape) > 1:
            counts[tensor.dtype if tensor.kind is None else tensor.kind.name] += prod(tensor.shape)
    return dict(counts.most_common())


def directory_quantization(directory: ModelDirectory) -> str | None:
    """Return the scheme of an MLC directory, the method of a quantized Hugging Face one, or its config's type."""
    if directory.scheme is not None:
        return directory.scheme
    method = directory.config.get("quantization_config")
    if isinstance(method, dict):
        named = method.get("quant_method")
        bits = method.get("bits")
        return f"{named}-{bits}bit" if isinstance(bits, int) else str(named)
    dtype = directory.config.get("dtype", directory.config.get("torch_dtype"))
    return dtype if isinstance(dtype, str) else None


def size_text(num_bytes: int) -> str:
    """Return a size as people read it."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}" if unit == "GiB" else f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"
