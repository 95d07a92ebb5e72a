"""The one place where the parts of an engine meet: from a directory to a model that is ready to run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from windlass.config import EngineConfig, Sizes, default_threads, settle_sizes
from windlass.engine.adapters import Adapters
from windlass.engine.draft_model import ModelSpeculator
from windlass.engine.runtime import Runtime
from windlass.engine.speculation import NgramSpeculator, Speculator
from windlass.errors import LoadError
from windlass.machine import available_bytes, total_bytes
from windlass.models.definition import ModelDefinition
from windlass.models.embedding import as_embedding, read_pooling
from windlass.models.quantization_config import read_quantization
from windlass.models.registry import define_model, find_gguf_family
from windlass.native.executor import NativeExecutor, kv_bytes_per_page
from windlass.native.quantize import quantize
from windlass.program.executor import Executor, KVDtype
from windlass.quantization import Format, Scheme, Tensor, get_scheme
from windlass.serve import alive
from windlass.serve.adapters import adapter_bytes, load_adapter
from windlass.serve.kept_weights import kept_weights, load_cache
from windlass.serve.progress import Interruptible, Progress, TerminalProgress
from windlass.text.text_model import TextModel
from windlass.weights.directory import open_model_directory
from windlass.weights.dummy import dummy_weights
from windlass.weights.gguf import find_gguf, read_gguf
from windlass.weights.hub import resolve_model
from windlass.weights.loader import load_weights
from windlass.weights.source import WeightSource

EMBEDDED_AT_ONCE = 32
"""Texts that a model for embeddings takes at once by default."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model with everything an engine needs to serve it. The engine's core runs the executors and closes them."""

    name: str
    definition: ModelDefinition
    text: TextModel
    executor: Executor
    sizes: Sizes
    config: EngineConfig
    active_vocab_size: int
    draft_executor: Executor | None = None
    adapters: Adapters = field(default_factory=Adapters)

    def close(self) -> None:
        """Free weights, adapters and KV cache of a model that no engine's core has."""
        with ExitStack() as stack:
            stack.callback(self.adapters.close)
            for executor in (self.executor, self.draft_executor):
                if executor is not None:
                    stack.callback(executor.close)

    def load_adapter(self, name: str, path: str, interrupt: Callable[[], None]) -> bool:
        """Load an adapter beside the model; see ``load_adapter``."""
        if self.definition.pooling is not None:
            raise LoadError(path, f"the model {self.name!r} makes embeddings; adapters are for models that write text")
        return load_adapter(
            name,
            path,
            program=self.definition.program,
            executor=self.executor,
            adapters=self.adapters,
            interrupt=interrupt,
        )

    @property
    def _needs_all_rows(self) -> bool:
        """True when what an earlier text has left in the KV cache does not make up for running its tokens."""
        pooling = self.definition.pooling
        return self.definition.needs_whole_prompts or (pooling is not None and pooling.kind != "last")

    def runtime(self) -> Runtime:
        """Return what the engine's core needs of it."""
        return Runtime.build(
            self.executor,
            num_pages=self.sizes.num_pages,
            max_num_sequence=self.sizes.max_num_sequence,
            max_tokens=self.sizes.prefill_chunk_size,
            active_vocab_size=self.active_vocab_size,
            prefix_cache=self.config.prefix_cache_mode == "radix" and not self._needs_all_rows,
            kernels=self.config.kernels,
            speculator=self._speculator(),
            draft_executor=self.draft_executor,
            adapters=self.adapters,
            pooling=self.definition.pooling,
            whole_prompts=self.definition.needs_whole_prompts,
        )

    def _speculator(self) -> Speculator | None:
        if self.definition.pooling is not None:
            return None
        length = self.config.spec_draft_length
        if self.draft_executor is not None:
            return ModelSpeculator(
                self.draft_executor, self.active_vocab_size, length=length, kernels=self.config.kernels
            )
        return NgramSpeculator(length) if self.config.speculative_mode == "ngram" else None


@dataclass(frozen=True, slots=True, eq=False)
class _Described:
    """A model of which everything is known but the weights."""

    path: Path
    definition: ModelDefinition
    scheme: Scheme | None
    source: WeightSource | None
    kv_dtype: KVDtype
    text: TextModel
    active_vocab_size: int
    """How many ids may be drawn."""

    @property
    def weight_bytes(self) -> int:
        """Estimate of the packed weights' size."""
        return _weight_bytes(self.definition, self.scheme, self.source)

    @property
    def page_bytes(self) -> int:
        """Size of one page of its KV cache."""
        return kv_bytes_per_page(self.definition.program, self.kv_dtype)


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
        model = _describe(path, config, progress, stack)
        draft = None
        if config.draft_model is not None:
            draft = _describe(resolve_model(config.draft_model, report=progress), config, progress, stack)
            _check_draft(draft, model)
        adapters = config.adapters or {}
        sizes = _settle(config, model, draft, adapter_bytes(adapters))
        executor = _make_executor(config, model, sizes, sizes.prefill_chunk_size, progress)
        on_failure = stack.enter_context(ExitStack())
        on_failure.callback(executor.close)
        draft_executor = None
        if draft is not None:
            most_tokens = ModelSpeculator.most_tokens(sizes.prefill_chunk_size, sizes.max_num_sequence)
            draft_executor = _make_executor(config, draft, sizes, most_tokens, progress)
            on_failure.callback(draft_executor.close)
        loaded = LoadedModel(
            name=name,
            definition=model.definition,
            text=model.text,
            executor=executor,
            sizes=sizes,
            config=_completed(config, path, sizes, model.kv_dtype, executor),
            active_vocab_size=model.active_vocab_size,
            draft_executor=draft_executor,
        )
        on_failure.callback(loaded.adapters.close)
        for number, (adapter, where) in enumerate(adapters.items()):
            progress("loading adapters", number, len(adapters))
            loaded.load_adapter(adapter, where, interrupt or _go_on)
        on_failure.pop_all()
        return loaded


def _go_on() -> None:
    """Nobody interrupts."""


def _describe(path: Path, config: EngineConfig, progress: Progress, stack: ExitStack) -> _Described:
    """Read what stands beside the weights in ``path``; ``stack`` closes the files of the weights."""
    progress("reading the configuration", 0, 0)
    gguf = find_gguf(path)
    if gguf is not None:
        return _describe_gguf(gguf, config, progress, stack)
    return _describe_directory(path, config, progress, stack)


def _describe_directory(path: Path, config: EngineConfig, progress: Progress, stack: ExitStack) -> _Described:
    directory = open_model_directory(path)
    definition = define_model(directory.model_type, directory.config, directory.config_path, dialect=directory.dialect)
    pooling = read_pooling(path)
    if pooling is not None:
        definition = as_embedding(definition, pooling)
    scheme = _wanted_scheme(config, directory.scheme)
    groupings = read_quantization(directory.config, directory.config_path) if directory.dialect == "hf" else None
    source = None
    if config.load_format != "dummy":
        source = stack.enter_context(closing(directory.open_weights(groupings)))
        if directory.dialect == "hf":
            source.rename(definition.stored_prefixes)
    progress("loading the tokenizer", 0, 0)
    text = TextModel.load(
        directory.path,
        directory.config,
        directory.mlc,
        dummy=config.load_format == "dummy",
        cache=load_cache(config),
    )
    active = (directory.mlc or {}).get("active_vocab_size")
    return _described(config, path, definition, scheme, source, text, active_vocab_size=active)


def _describe_gguf(path: Path, config: EngineConfig, progress: Progress, stack: ExitStack) -> _Described:
    # For this format only.
    from windlass.models.gguf_config import from_gguf_metadata, read_gguf_pooling
    from windlass.weights.gguf_names import hugging_face_tensors, read_rope_factors

    model = read_gguf(path)
    model_type, dialect = find_gguf_family(model.metadata, path)
    tensors = hugging_face_tensors(model, dialect.tensors, dialect.paired)
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    values = from_gguf_metadata(dialect, model.metadata, shapes, read_rope_factors(model), path)
    definition = define_model(model_type, values, path, dialect="hf")
    pooling = read_gguf_pooling(dialect, model.metadata, path)
    if pooling is not None:
        definition = as_embedding(definition, pooling)
    scheme = _wanted_scheme(config, None)
    source = None
    if config.load_format != "dummy":
        source = stack.enter_context(closing(WeightSource(path, tensors)))
    progress("loading the tokenizer", 0, 0)
    return _described(
        config, path, definition, scheme, source, TextModel.from_gguf(path, model.metadata, load_cache(config))
    )


def _described(
    config: EngineConfig,
    path: Path,
    definition: ModelDefinition,
    scheme: Scheme | None,
    source: WeightSource | None,
    text: TextModel,
    *,
    active_vocab_size: object = None,
) -> _Described:
    """Settle what is found alike for every format; ``active_vocab_size`` is what the files say of it."""
    active = active_vocab_size
    if not isinstance(active, int) or not 0 < active <= definition.vocab_size:
        active = min(definition.vocab_size, text.vocab_size or definition.vocab_size)
    return _Described(
        path=path,
        definition=definition,
        scheme=scheme,
        source=source,
        kv_dtype=_kv_dtype(config, scheme, source, definition),
        text=text,
        active_vocab_size=active,
    )


def _check_draft(draft: _Described, model: _Described) -> None:
    """Raise LoadError unless ``draft`` can write what ``model`` reads."""
    theirs, ours = draft.active_vocab_size, model.active_vocab_size
    if theirs != ours:
        reason = f"a draft model needs the vocabulary of the model, which has {ours} tokens; this one has {theirs}"
        raise LoadError(draft.path, reason)


def _wanted_scheme(config: EngineConfig, own: str | None) -> Scheme | None:
    """Return the scheme the weights end in: what is asked for, or the files' own; None keeps them as stored."""
    wanted = own if config.quantization is None else config.quantization
    return None if wanted is None else get_scheme(wanted)


def _kv_dtype(
    config: EngineConfig, scheme: Scheme | None, source: WeightSource | None, definition: ModelDefinition
) -> KVDtype:
    if config.kv_cache_dtype != "auto":
        return config.kv_cache_dtype
    return "f32" if _float_format(scheme, source, definition) is Format.F32 else "int16"


def _float_format(scheme: Scheme | None, source: WeightSource | None, definition: ModelDefinition) -> Format:
    """Return the format of the model's float weights: the scheme's, else that of the first stored part."""
    if scheme is not None:
        return scheme.model_dtype
    part = definition.program.weights[0].parts[0].name
    if source is None or part not in source.names:
        return Format.BF16
    stored = source.info(part)
    return Format.F16 if stored.quantized_bits is not None else stored.format or Format.F32


def _weight_bytes(definition: ModelDefinition, scheme: Scheme | None, source: WeightSource | None) -> int:
    """Estimate the packed weights' size in bytes."""
    float_bits = 32 if _float_format(scheme, source, definition) is Format.F32 else 16
    total = 0
    for spec in definition.program.weights:
        bits: float = float_bits
        if scheme is not None and scheme.quantizes(spec.role):
            bits = (8 if scheme.bits > 4 else 4) + float_bits / scheme.group_size
        elif source is not None:
            stored = [source.info(part.name).quantized_bits for part in spec.parts if part.name in source.names]
            bits = max((part for part in stored if part is not None), default=bits)
        total += math.ceil(math.prod(spec.shape) * bits / 8)
    return total


def _settle(config: EngineConfig, model: _Described, draft: _Described | None, others: int) -> Sizes:
    """Settle the sizes; ``others`` are bytes that are taken by what comes later."""
    models = [model] if draft is None else [model, draft]
    weights = sum(one.weight_bytes for one in models) + others
    page_bytes = sum(one.page_bytes for one in models)
    available = available_bytes()
    if available is None:
        available = total_bytes() // 2
    free = int(available * config.gpu_memory_utilization)
    if weights + page_bytes > free:
        raise LoadError(
            model.path,
            f"the weights take {weights >> 20} MiB, but {free >> 20} MiB of memory are available{alive.hint()}",
        )
    pooling = model.definition.pooling
    if pooling is not None and config.max_num_sequence is None:
        # Texts pass once, and many of them fit a step.
        config = dataclasses.replace(config, max_num_sequence=EMBEDDED_AT_ONCE)
    sizes = settle_sizes(
        config,
        context_length=model.definition.context_length,
        kv_bytes_per_page=page_bytes,
        free_bytes=free - weights,
    )
    if draft is not None and draft.definition.context_length < sizes.max_single_sequence_length:
        raise LoadError(
            draft.path,
            f"the draft model's context of {draft.definition.context_length} tokens is shorter than the longest "
            f"sequence; set EngineConfig.max_single_sequence_length to it, or lower",
        )
    if model.definition.needs_whole_prompts:
        longest = max(sizes.prefill_chunk_size, sizes.max_single_sequence_length)
        sizes = dataclasses.replace(sizes, prefill_chunk_size=longest)
    return sizes


def _weights(config: EngineConfig, model: _Described, progress: Progress) -> Iterable[tuple[str, Tensor]]:
    specs = model.definition.program.weights
    if model.source is None:
        return _reported(dummy_weights(specs, model.scheme), len(specs), progress)
    return load_weights(
        specs,
        model.source,
        model.scheme,
        ignored=model.definition.ignored_tensors,
        quantizer=partial(quantize, num_threads=config.num_threads or default_threads()),
        progress=lambda done, total: progress("packing weights", done, total),
    )


def _reported(weights: Iterable[tuple[str, Tensor]], total: int, progress: Progress) -> Iterator[tuple[str, Tensor]]:
    for done, weight in enumerate(weights):
        progress("making weights", done, total)
        yield weight


def _make_executor(
    config: EngineConfig, model: _Described, sizes: Sizes, max_tokens: int, progress: Progress
) -> Executor:
    weights = _weights(config, model, progress)
    try:
        if config.executor == "reference":
            from windlass.program.reference import ReferenceExecutor  # for tests only

            return ReferenceExecutor(
                model.definition.program,
                weights,
                num_pages=sizes.num_pages,
                max_tokens=max_tokens,
                max_positions=sizes.max_single_sequence_length,
                kv_dtype=model.kv_dtype,
            )
        kept = None
        if model.source is not None:
            kept = kept_weights(config, model.definition, model.scheme, model.source, model.weight_bytes)
        with ExitStack() as stack:
            executor = NativeExecutor(
                model.definition.program,
                weights,
                num_pages=sizes.num_pages,
                max_tokens=max_tokens,
                max_positions=sizes.max_single_sequence_length,
                num_threads=config.num_threads or default_threads(),
                kv_dtype=model.kv_dtype,
                kernels=config.kernels,
                pack_file=stack.enter_context(kept.opened()) if kept is not None else None,
            )
        if kept is not None and not executor.weights_mapped:
            kept.keep(executor, progress)
        return executor
    except MemoryError as error:
        reason = f"there is not enough memory for the weights and the KV cache{alive.hint()}"
        raise LoadError(model.path, reason) from error


def _completed(config: EngineConfig, path: Path, sizes: Sizes, kv_dtype: KVDtype, executor: Executor) -> EngineConfig:
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
