"""The one place where the parts of an engine meet: from a directory to a model that is ready to run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from windlass.config import EngineConfig, Sizes, default_threads, settle_sizes
from windlass.engine.runtime import Runtime
from windlass.engine.speculation import NgramSpeculator, Speculator
from windlass.errors import LoadError
from windlass.machine import available_bytes, total_bytes
from windlass.models.definition import ModelDefinition
from windlass.models.registry import define_model
from windlass.native.executor import NativeExecutor, kv_bytes_per_page
from windlass.program.executor import Executor
from windlass.program.reference import ReferenceExecutor
from windlass.quantization import Format, Scheme, Tensor, get_scheme
from windlass.serve import alive
from windlass.serve.progress import Interruptible, Progress, TerminalProgress
from windlass.text.text_model import TextModel
from windlass.weights.directory import ModelDirectory, open_model_directory
from windlass.weights.dummy import dummy_weights
from windlass.weights.loader import load_weights
from windlass.weights.source import WeightSource

KVStorage = Literal["f32", "f16", "bf16", "int8"]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model with everything an engine needs to serve it. The engine's core runs the executor and closes it."""

    name: str
    definition: ModelDefinition
    text: TextModel
    executor: Executor
    sizes: Sizes
    config: EngineConfig
    active_vocab_size: int

    def runtime(self) -> Runtime:
        """Return what the engine's core needs of it."""
        return Runtime.build(
            self.executor,
            num_pages=self.sizes.num_pages,
            max_num_sequence=self.sizes.max_num_sequence,
            max_tokens=self.sizes.prefill_chunk_size,
            active_vocab_size=self.active_vocab_size,
            prefix_cache=self.config.prefix_cache_mode == "radix",
            kernels=self.config.kernels,
            speculator=self._speculator(),
        )

    def _speculator(self) -> Speculator | None:
        if self.config.speculative_mode == "disable":
            return None
        return NgramSpeculator(self.config.spec_draft_length)


def load_model(
    name: str,
    path: Path,
    config: EngineConfig,
    *,
    progress: Progress | None = None,
    interrupt: Callable[[], None] | None = None,
) -> LoadedModel:
    """Load the model in directory ``path``.

    Everything that can be checked is checked before anything large is read or allocated.

    Args:
        name: what users call the model; responses repeat it.
        config: with the engine's arguments filled in.
        progress: told about each phase; None shows it on a terminal when ``config.verbose``.
        interrupt: called every now and then; what it raises ends the load.

    Raises:
        LoadError: the directory is at fault, or memory does not suffice.
        ValueError: ``config`` asks for what this model cannot do.
    """
    with ExitStack() as stack:
        if progress is None:
            progress = stack.enter_context(closing(TerminalProgress(enabled=config.verbose)))
        if interrupt is not None:
            progress = Interruptible(progress, interrupt)
        progress("reading the configuration", 0, 0)
        directory = open_model_directory(path)
        definition = define_model(
            directory.model_type, directory.config, directory.config_path, dialect=directory.dialect
        )
        scheme = _wanted_scheme(directory, config)
        source = None
        if config.load_format != "dummy":
            source = stack.enter_context(closing(directory.open_weights()))
        progress("loading the tokenizer", 0, 0)
        text = TextModel.load(directory.path, directory.config, directory.mlc, dummy=config.load_format == "dummy")
        kv_dtype = _kv_storage(config, scheme, source, definition)
        sizes = _settle(path, config, definition, scheme, source, kv_dtype)
        weights = _weights(definition, scheme, source, progress)
        executor = _make_executor(path, config, definition, weights, sizes, kv_dtype)
        on_failure = stack.enter_context(ExitStack())
        on_failure.callback(executor.close)
        loaded = LoadedModel(
            name=name,
            definition=definition,
            text=text,
            executor=executor,
            sizes=sizes,
            config=_completed(config, path, sizes, kv_dtype, executor),
            active_vocab_size=_active_vocab_size(directory, definition, text),
        )
        on_failure.pop_all()
        return loaded


def _wanted_scheme(directory: ModelDirectory, config: EngineConfig) -> Scheme | None:
    """Return the scheme the weights end in: what is asked for, or an MLC directory's own; None keeps them as stored."""
    if config.quantization is not None:
        return get_scheme(config.quantization)
    return get_scheme(directory.scheme) if directory.scheme is not None else None


def _kv_storage(
    config: EngineConfig, scheme: Scheme | None, source: WeightSource | None, definition: ModelDefinition
) -> KVStorage:
    if config.kv_cache_dtype != "auto":
        return config.kv_cache_dtype
    return "f32" if _float_format(scheme, source, definition) is Format.F32 else "f16"


def _float_format(scheme: Scheme | None, source: WeightSource | None, definition: ModelDefinition) -> Format:
    """Return the format of the model's float weights: the scheme's, else that of the first stored part."""
    if scheme is not None:
        return scheme.model_dtype
    part = definition.program.weights[0].parts[0]
    if source is None or part not in source.names:
        return Format.BF16
    return source.info(part).format or Format.F32


def _weight_bytes(definition: ModelDefinition, scheme: Scheme | None, float_format: Format) -> int:
    """Estimate the packed weights' size in bytes."""
    float_bits = 32 if float_format is Format.F32 else 16
    total = 0
    for spec in definition.program.weights:
        bits: float = float_bits
        if scheme is not None and scheme.quantizes(spec.role):
            bits = (8 if scheme.bits > 4 else 4) + float_bits / scheme.group_size
        total += math.ceil(math.prod(spec.shape) * bits / 8)
    return total


def _settle(
    path: Path,
    config: EngineConfig,
    definition: ModelDefinition,
    scheme: Scheme | None,
    source: WeightSource | None,
    kv_dtype: KVStorage,
) -> Sizes:
    weights = _weight_bytes(definition, scheme, _float_format(scheme, source, definition))
    available = available_bytes()
    if available is None:
        available = total_bytes() // 2
    free = int(available * config.gpu_memory_utilization)
    page_bytes = kv_bytes_per_page(definition.program, kv_dtype)
    if weights + page_bytes > free:
        raise LoadError(
            path,
            f"the weights take {weights >> 20} MiB, but {free >> 20} MiB of memory are available{alive.hint()}",
        )
    return settle_sizes(
        config,
        context_length=definition.context_length,
        kv_bytes_per_page=page_bytes,
        free_bytes=free - weights,
    )


def _weights(
    definition: ModelDefinition, scheme: Scheme | None, source: WeightSource | None, progress: Progress
) -> Iterable[tuple[str, Tensor]]:
    specs = definition.program.weights
    if source is None:
        return _reported(dummy_weights(specs, scheme), len(specs), progress)
    return load_weights(
        specs,
        source,
        scheme,
        ignored=definition.ignored_tensors,
        progress=lambda done, total: progress("packing weights", done, total),
    )


def _reported(weights: Iterable[tuple[str, Tensor]], total: int, progress: Progress) -> Iterator[tuple[str, Tensor]]:
    for done, weight in enumerate(weights):
        progress("making weights", done, total)
        yield weight


def _make_executor(
    path: Path,
    config: EngineConfig,
    definition: ModelDefinition,
    weights: Iterable[tuple[str, Tensor]],
    sizes: Sizes,
    kv_dtype: KVStorage,
) -> Executor:
    try:
        if config.executor == "reference":
            return ReferenceExecutor(
                definition.program,
                weights,
                num_pages=sizes.num_pages,
                max_tokens=sizes.prefill_chunk_size,
                max_positions=sizes.max_single_sequence_length,
                kv_dtype=kv_dtype,
            )
        return NativeExecutor(
            definition.program,
            weights,
            num_pages=sizes.num_pages,
            max_tokens=sizes.prefill_chunk_size,
            max_positions=sizes.max_single_sequence_length,
            num_threads=config.num_threads or default_threads(),
            kv_dtype=kv_dtype,
            kernels=config.kernels,
        )
    except MemoryError as error:
        reason = f"there is not enough memory for the weights and the KV cache{alive.hint()}"
        raise LoadError(path, reason) from error


def _completed(config: EngineConfig, path: Path, sizes: Sizes, kv_dtype: KVStorage, executor: Executor) -> EngineConfig:
    return dataclasses.replace(
        config,
        model=str(path),
        mode=config.mode or "local",
        max_num_sequence=sizes.max_num_sequence,
        max_total_sequence_length=sizes.num_pages * config.kv_cache_page_size,
        max_single_sequence_length=sizes.max_single_sequence_length,
        prefill_chunk_size=sizes.prefill_chunk_size,
        kv_cache_dtype=kv_dtype,
        num_threads=executor.num_threads if isinstance(executor, NativeExecutor) else 1,
    )


def _active_vocab_size(directory: ModelDirectory, definition: ModelDefinition, text: TextModel) -> int:
    """Return how many ids may be drawn: those that an MLC directory calls active, or that the tokenizer knows."""
    active = (directory.mlc or {}).get("active_vocab_size")
    if isinstance(active, int) and 0 < active <= definition.vocab_size:
        return active
    return min(definition.vocab_size, text.vocab_size or definition.vocab_size)
