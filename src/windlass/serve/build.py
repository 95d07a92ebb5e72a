"""The one place where the parts of an engine meet: from a directory to a model that is ready to run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from windlass.config import DEFAULT_PREFILL_CHUNK, EngineConfig, Sizes, default_threads, settle_sizes
from windlass.engine.adapters import Adapters
from windlass.engine.draft_model import ModelSpeculator
from windlass.engine.runtime import Runtime
from windlass.engine.speculation import NgramSpeculator, Speculator
from windlass.errors import LoadError
from windlass.machine import available_bytes, total_bytes
from windlass.models.definition import ModelDefinition
from windlass.native.executor import NativeExecutor, kv_bytes_per_page
from windlass.native.quantize import quantize
from windlass.program.executor import Executor, KVDtype
from windlass.quantization import Format, Scheme, Tensor, get_scheme
from windlass.serve import alive
from windlass.serve.adapters import adapter_bytes, load_adapter
from windlass.serve.kept_weights import kept_weights, load_cache
from windlass.serve.last_used import note_use
from windlass.serve.opened import OpenedModel, open_model
from windlass.serve.progress import Interruptible, Progress, TerminalProgress
from windlass.text.text_model import TextModel
from windlass.weights.dummy import dummy_weights
from windlass.weights.hub import resolve_model
from windlass.weights.loader import load_weights
from windlass.weights.source import WeightSource

WIDEST_CODED_HEAD = 256
"""The sums of products of wider heads leave their codes fewer bits than float16 has."""

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
class DescribedModel:
    """A model of which everything is known but the weights. ``scheme`` is what these end in, None as stored.

    ``active_vocab_size`` is how many ids may be drawn.
    """

    opened: OpenedModel
    scheme: Scheme | None
    kv_dtype: KVDtype
    text: TextModel
    active_vocab_size: int

    @property
    def path(self) -> Path:
        """The directory or file."""
        return self.opened.path

    @property
    def definition(self) -> ModelDefinition:
        """The model without its weights."""
        return self.opened.definition

    @property
    def source(self) -> WeightSource | None:
        """The open weights, None where random ones are made."""
        return self.opened.source

    @property
    def weight_bytes(self) -> int:
        """Estimate of the packed weights' size."""
        return _weight_bytes(self.definition, self.scheme, self.source)

    @property
    def page_bytes(self) -> int:
        """Size of one page of its KV cache."""
        return kv_bytes_per_page(self.definition.program, self.kv_dtype)

    def buffer_bytes(self, config: EngineConfig) -> int:
        """The most that the values of one step take: those of the program's buffers, and logits."""
        program = self.definition.program
        tokens = config.prefill_chunk_size or DEFAULT_PREFILL_CHUNK
        return 4 * (tokens * sum(program.buffer_widths) + (config.max_num_sequence or 1) * program.vocab_size)


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
        model = describe_model(path, config, progress, stack)
        draft = None
        if config.draft_model is not None:
            draft = describe_model(resolve_model(config.draft_model, report=progress), config, progress, stack)
            _check_draft(draft, model)
        adapters = config.adapters or {}
        sizes = settle_model(config, model, draft)
        executor = _make_executor(config, model, sizes, sizes.prefill_chunk_size, progress)
        on_failure = stack.enter_context(ExitStack())
        on_failure.callback(executor.close)
        draft_executor = None
        if draft is not None:
            most_tokens = ModelSpeculator.most_tokens(sizes.prefill_chunk_size, sizes.max_num_sequence)
            draft_executor = _make_executor(config, draft, sizes, most_tokens, progress, threads_of=executor)
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
        for one in (model, draft):
            if one is not None:
                note_use(one.path, load_cache(config))
        on_failure.pop_all()
        return loaded


def _go_on() -> None:
    """Nobody interrupts."""


def describe_model(path: Path, config: EngineConfig, progress: Progress, stack: ExitStack) -> DescribedModel:
    """Read what stands beside the weights in ``path``; ``stack`` closes the files of the weights.

    Raises:
        LoadError: there is no model, or one that cannot be run.
        ValueError: ``config`` names no scheme.
    """
    progress("reading the configuration", 0, 0)
    dummy = config.load_format == "dummy"
    opened = open_model(path, stack, weights=not dummy)
    scheme = _wanted_scheme(config, opened.scheme)
    progress("loading the tokenizer", 0, 0)
    text = opened.load_text(dummy=dummy, cache=load_cache(config))
    definition, active = opened.definition, opened.active_vocab_size
    if not isinstance(active, int) or not 0 < active <= definition.vocab_size:
        active = min(definition.vocab_size, text.vocab_size or definition.vocab_size)
    return DescribedModel(
        opened=opened,
        scheme=scheme,
        kv_dtype=_kv_dtype(config, scheme, opened.source, definition),
        text=text,
        active_vocab_size=active,
    )


def _check_draft(draft: DescribedModel, model: DescribedModel) -> None:
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
    if _float_format(scheme, source, definition) is Format.F32:
        return "f32"
    return "int16" if definition.program.head_dim <= WIDEST_CODED_HEAD else "f16"


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


def usable_bytes(config: EngineConfig) -> int:
    """Return how much memory weights and KV cache may take now."""
    available = available_bytes()
    if available is None:
        available = total_bytes() // 2
    return int(available * config.gpu_memory_utilization)


def settle_model(config: EngineConfig, model: DescribedModel, draft: DescribedModel | None = None) -> Sizes:
    """Choose the sizes of an engine that fits into the memory there is now.

    Raises:
        LoadError: the weights do not fit.
        ValueError: the KV cache does not.
    """
    models = [model] if draft is None else [model, draft]
    weights = sum(one.weight_bytes for one in models) + adapter_bytes(config.adapters or {})
    page_bytes = sum(one.page_bytes for one in models)
    free = usable_bytes(config)
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


def _weights(config: EngineConfig, model: DescribedModel, progress: Progress) -> Iterable[tuple[str, Tensor]]:
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
    config: EngineConfig,
    model: DescribedModel,
    sizes: Sizes,
    max_tokens: int,
    progress: Progress,
    threads_of: Executor | None = None,
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
                threads_of=cast("NativeExecutor | None", threads_of),  # of the same backend
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
