"""How an engine is set up: checked once, here. The only reader of environment variables."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

Mode = Literal["local", "interactive", "server"]
KVCacheDtype = Literal["auto", "f32", "f16", "bf16", "int16", "int8"]
PrefixCacheMode = Literal["radix", "disable"]
LoadFormat = Literal["auto", "dummy"]
ExecutorName = Literal["native", "reference"]
SpeculativeMode = Literal["ngram", "small_draft", "disable"]

PAGE_TOKENS = 16
DEFAULT_PREFILL_CHUNK = 512
MAX_DRAFT_LENGTH = 32
LOCAL_TOKENS = 8192
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@+-]{0,127}")


@dataclass(kw_only=True)
class EngineConfig:
    """Settings of an engine; ``None`` lets the engine choose. Names and modes are MLC-LLM's where it has them.

    Modes: ``local`` serves up to 4 sequences in up to 8,192 tokens of KV cache, ``interactive`` one sequence in one
    context, ``server`` up to 128 sequences in what memory allows.

    Raises:
        ValueError: a value is out of range, or two of them conflict; the message names the field.
    """

    model: str | None = None
    """Model directory or ``HF://org/name``; the same as the engine's ``model`` argument when both are given."""
    model_lib: str | None = None
    """Accepted for compatibility with MLC-LLM; Windlass compiles nothing per model and ignores it."""
    mode: Mode | None = None
    quantization: str | None = None
    """Scheme to quantize a Hugging Face model to while loading, such as ``q4f16_1``; None keeps it as stored."""
    load_format: LoadFormat = "auto"
    """``dummy`` makes random weights from the model's config alone: for benchmarks and tests of size."""
    max_num_sequence: int | None = None
    """Sequences that run at the same time; more of them wait."""
    max_total_sequence_length: int | None = None
    """Capacity of the KV cache in tokens."""
    max_single_sequence_length: int | None = None
    """Longest sequence, prompt and answer together, in tokens; at most the model's context."""
    prefill_chunk_size: int | None = None
    """Most tokens of one step; at least ``max_num_sequence``, since each running sequence decodes one."""
    max_waiting_requests: int = 1024
    """Requests that may wait for a free sequence; beyond that they are refused with ``EngineOverloadedError``."""
    max_waiting_tokens: int | None = None
    """Prompt tokens that may wait, a single waiting request excepted; None sets no bound."""
    prefix_cache_mode: PrefixCacheMode = "radix"
    """``radix`` keeps the KV pages of past requests for later ones that begin alike; ``disable`` does not."""
    gpu_memory_utilization: float = 0.85
    """Share of the available memory that model and KV cache may take together (of main memory on a CPU)."""
    kv_cache_page_size: int = PAGE_TOKENS
    kv_cache_dtype: KVCacheDtype = "auto"
    """How keys and values are kept: ``auto`` is f32 for models stored in f32, ``int16`` for all others, but ``f16``
    where heads have more than 256 columns. ``int16`` has codes of 14 bits, fewer in wider heads, with a scale per token
    and KV head: closer to what was computed than f16, and multiplied faster.
    ``int8``, with such scales too, takes half the memory and is less exact."""
    num_threads: int | None = None
    """Threads that compute; None is the number of physical cores this process may use."""
    executor: ExecutorName = "native"
    """``reference`` is the slow numpy oracle, for tests."""
    kernels: str | None = None
    """Instruction set of the kernels, one of those ``windlass doctor`` lists; None is the best of this CPU."""
    speculative_mode: SpeculativeMode = "ngram"
    """Guess tokens ahead and check them together; the answers are the same to the last token. ``ngram`` guesses what
    followed earlier in the same sequence, ``small_draft`` asks a smaller model (``additional_models``)."""
    spec_draft_length: int = 0
    """Tokens to guess at a time; 0 guesses as many as pay, by what guesses were worth and what steps cost here."""
    additional_models: tuple[str | tuple[str, str], ...] = ()
    """For ``small_draft``, the draft model: a directory or ``HF://org/name``, of the same vocabulary as the model. In a
    pair, as MLC-LLM has them, the second is ignored."""
    tensor_parallel_shards: int | None = None
    pipeline_parallel_stages: int | None = None
    sliding_window_size: int | None = None
    attention_sink_size: int | None = None
    max_history_size: int | None = None
    kv_state_kind: str | None = None
    spec_tree_width: int = 1
    prefill_mode: str = "hybrid"
    prefix_cache_max_num_recycling_seqs: int | None = None
    opt: str | None = None
    """From ``tensor_parallel_shards`` to here: fields of MLC-LLM's with one possible value in Windlass (``_ONLY``)."""
    adapters: dict[str, str] | None = None
    """LoRA adapters to load beside the model: what requests call each, and its directory or ``HF://org/name``."""
    pack_cache: bool = True
    """Keep a model's packed weights in a file, in ``cache_directory()``, that later loads map."""
    verbose: bool = True
    """Show the progress of a load of over a second, on a terminal."""

    def __post_init__(self) -> None:
        _check_choice(self, "mode", (*get_args(Mode), None))
        _check_choice(self, "load_format", get_args(LoadFormat))
        _check_choice(self, "prefix_cache_mode", get_args(PrefixCacheMode))
        _check_choice(self, "kv_cache_dtype", get_args(KVCacheDtype))
        _check_choice(self, "executor", get_args(ExecutorName))
        _check_speculation(self)
        _check_adapters(self)
        for name, accepted in _ONLY.items():
            _check_choice(self, name, accepted)
        for name in (
            "max_num_sequence",
            "max_total_sequence_length",
            "max_single_sequence_length",
            "prefill_chunk_size",
            "max_waiting_requests",
            "max_waiting_tokens",
            "num_threads",
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"EngineConfig.{name} must be a positive integer or None, not {value!r}")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ValueError(
                f"EngineConfig.gpu_memory_utilization must lie in (0, 1], not {self.gpu_memory_utilization!r}"
            )
        if self.kv_cache_page_size != PAGE_TOKENS:
            raise ValueError(f"EngineConfig.kv_cache_page_size must be {PAGE_TOKENS}, not {self.kv_cache_page_size!r}")
        total, single = self.max_total_sequence_length, self.max_single_sequence_length
        if total is not None and single is not None and single > total:
            raise ValueError(
                f"EngineConfig.max_single_sequence_length ({single}) is larger than max_total_sequence_length ({total})"
            )

    @property
    def draft_model(self) -> str | None:
        """The model of ``additional_models`` that drafts, if there is one."""
        for model in self.additional_models:
            return model if isinstance(model, str) else model[0]
        return None

    def with_arguments(self, **arguments: Any) -> EngineConfig:
        """Return a copy in which the constructor's arguments are filled in.

        Raises:
            ValueError: an argument differs from what the field was set to.
        """
        changes = {}
        for name, value in arguments.items():
            current = getattr(self, name)
            if value is None:
                continue
            if current is not None and current != value:
                raise ValueError(f"EngineConfig.{name} is {current!r}, but the engine was given {name}={value!r}")
            changes[name] = value
        return dataclasses.replace(self, **changes)


_ONLY: dict[str, tuple[Any, ...]] = {
    "tensor_parallel_shards": (None, 1),
    "pipeline_parallel_stages": (None, 1),
    "sliding_window_size": (None,),
    "attention_sink_size": (None,),
    "max_history_size": (None, 0),
    "kv_state_kind": (None, "kv_cache"),
    "spec_tree_width": (1,),
    "prefill_mode": ("hybrid",),
    "prefix_cache_max_num_recycling_seqs": (None, -1),
    "opt": (None,),
}
"""Fields of MLC-LLM's that choose between ways of working of which Windlass has one, and what they may say."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of one engine, settled."""

    max_num_sequence: int
    max_single_sequence_length: int
    prefill_chunk_size: int
    num_pages: int = field(metadata={"unit": "pages of 16 tokens"})


def settle_sizes(config: EngineConfig, *, context_length: int, kv_bytes_per_page: int, free_bytes: int) -> Sizes:
    """Choose what ``config`` leaves open, by its mode, the model and the memory that is left beside the weights.

    Args:
        context_length: the model's, in tokens.
        kv_bytes_per_page: KV cache bytes of one page, all layers.
        free_bytes: what the KV cache may take.

    Raises:
        ValueError: the memory does not hold the shortest useful cache, or a field exceeds what is possible.
    """
    mode = config.mode or "local"
    affordable = free_bytes // kv_bytes_per_page * PAGE_TOKENS
    single = config.max_single_sequence_length or context_length
    if single > context_length:
        raise ValueError(
            f"EngineConfig.max_single_sequence_length ({single}) is larger than the model's context ({context_length})"
        )
    sequences = config.max_num_sequence or {"local": 4, "interactive": 1, "server": 128}[mode]
    wanted = {
        "local": max(single, min(sequences * single, LOCAL_TOKENS))
        if config.max_single_sequence_length
        else min(sequences * single, LOCAL_TOKENS),
        "interactive": single,
        "server": sequences * single,
    }[mode]
    total = config.max_total_sequence_length or min(wanted, affordable)
    if config.max_single_sequence_length is None:
        single = min(single, total)
    pages = -(-total // PAGE_TOKENS)
    if total < 1 or pages * kv_bytes_per_page > free_bytes or single > pages * PAGE_TOKENS:
        tokens = max(total, single)
        raise ValueError(
            f"a KV cache for {tokens} tokens takes {_mib(-(-tokens // PAGE_TOKENS) * kv_bytes_per_page)}, "
            f"but {_mib(free_bytes)} are available; set EngineConfig.max_total_sequence_length lower"
        )
    return Sizes(
        max_num_sequence=sequences,
        max_single_sequence_length=single,
        prefill_chunk_size=max(min(config.prefill_chunk_size or DEFAULT_PREFILL_CHUNK, pages * PAGE_TOKENS), sequences),
        num_pages=pages,
    )


def default_threads() -> int | None:
    """Return the thread count that the environment asks for (``WINDLASS_NUM_THREADS``), or None.

    Raises:
        ValueError: the variable is set but not a positive integer.
    """
    value = os.environ.get("WINDLASS_NUM_THREADS")
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"WINDLASS_NUM_THREADS must be a positive integer, not {value!r}")
    return int(value)


def cache_directory() -> Path:
    """Return where files are kept that speed up later loads: ``WINDLASS_CACHE_DIR``, else ``windlass`` in the cache.

    The cache is ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    configured = os.environ.get("WINDLASS_CACHE_DIR")
    return Path(configured) if configured else _user_cache() / "windlass"


def cache_limit() -> int | None:
    """Return how many bytes that directory may hold (``WINDLASS_CACHE_LIMIT``, in GiB); None is for the engine to say.

    Raises:
        ValueError: the variable is set but not a number of at least 0.
    """
    value = os.environ.get("WINDLASS_CACHE_LIMIT")
    if not value:
        return None
    try:
        limit = float(value)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 1 << 30:
        raise ValueError(f"WINDLASS_CACHE_LIMIT must be a number of GiB, at least 0, not {value!r}")
    return int(limit * (1 << 30))


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def model_roots() -> dict[str, Path]:
    """Return where models usually lie, by the layout found there.

    ``here`` is the working directory, ``huggingface`` the download cache of huggingface_hub (``HF_HUB_CACHE`` or
    ``HUGGINGFACE_HUB_CACHE``, else below ``HF_HOME``), ``mlc`` that of MLC-LLM (``MLC_LLM_HOME``); the caches default
    to ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    cache = _user_cache()
    huggingface = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or huggingface / "hub"
    return {
        "here": Path.cwd(),
        "huggingface": Path(hub).expanduser(),
        "mlc": Path(os.environ.get("MLC_LLM_HOME") or cache / "mlc_llm"),
    }


def _check_choice(config: EngineConfig, name: str, choices: tuple[Any, ...]) -> None:
    value = getattr(config, name)
    if value not in choices:
        accepted = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"EngineConfig.{name} must be one of {accepted}, not {value!r}")


def _check_speculation(config: EngineConfig) -> None:
    _check_choice(config, "speculative_mode", get_args(SpeculativeMode))
    length = config.spec_draft_length
    if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= MAX_DRAFT_LENGTH:
        raise ValueError(f"EngineConfig.spec_draft_length must lie in 0 .. {MAX_DRAFT_LENGTH}, not {length!r}")
    models = config.additional_models
    if not isinstance(models, (list, tuple)) or not all(_names_model(model) for model in models):
        raise ValueError(f"EngineConfig.additional_models must be a list of models, not {models!r}")
    wanted = 1 if config.speculative_mode == "small_draft" else 0
    if len(models) != wanted:
        raise ValueError(
            f"EngineConfig.additional_models must name {wanted or 'no'} model for speculative_mode "
            f"{config.speculative_mode!r}, not {len(models)}"
        )


def _check_adapters(config: EngineConfig) -> None:
    adapters = config.adapters
    if adapters is None:
        return
    if not isinstance(adapters, dict) or not all(isinstance(path, str) and path for path in adapters.values()):
        raise ValueError(f"EngineConfig.adapters must map names to paths, not be {adapters!r}")
    for name in adapters:
        check_adapter_name(name)


def check_adapter_name(name: object) -> None:
    """Raise ValueError unless an adapter can be called ``name``: it stands behind a colon, and in lists and logs."""
    if not isinstance(name, str) or not _ADAPTER_NAME.fullmatch(name):
        raise ValueError(
            f"an adapter's name must be up to 128 letters, digits and . _ - / @ +, not {str(name)[:200]!r}"
        )


def _names_model(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and len(value) == 2)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
