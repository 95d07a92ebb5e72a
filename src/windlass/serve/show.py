"""What a model is and what it needs, told before it is loaded."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from windlass.config import PAGE_TOKENS, EngineConfig, model_roots
from windlass.errors import LoadError
from windlass.machine import available_bytes
from windlass.serve.build import DescribedModel, describe_model, settle_model, usable_bytes
from windlass.serve.listing import ListedModel, list_model, tensor_types
from windlass.text.chat_template import ChatTemplate
from windlass.text.prompt_template import PromptTemplate
from windlass.text.text_model import PlaceholderTokenizer, TextModel
from windlass.weights.directory import MLC_CONFIG_NAME, ModelDirectory
from windlass.weights.loader import count_parameters
from windlass.weights.stored_models import StoredModel, stored_model

MAX_README_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What an engine with one sequence of ``context`` tokens takes, in bytes, and whether it could start now.

    Attributes:
        weights: packed.
        kv_cache: for ``context`` tokens.
        buffers: at most, for steps of the usual size; they come out of the share that an engine leaves free.
        available: what the machine, or its container, has left; None where nothing tells.
        usable: what an engine takes of that for weights and KV cache at most.
        fits: what an engine would say.
        longest_context: the most tokens that would fit; 0 when the weights do not.
    """

    context: int
    weights: int
    kv_cache: int
    buffers: int
    available: int | None
    usable: int
    fits: bool
    longest_context: int


@dataclass(frozen=True, slots=True)
class ShownModel:
    """A model as ``windlass show`` tells of it. What is not known is None or empty.

    ``problem`` says why the model cannot be run; then little else is known. ``pooling`` is how a model for embeddings
    makes them of its tokens.
    """

    listed: ListedModel
    licence: str | None
    problem: str | None = None
    parameters: int | None = None
    tensor_types: dict[str, int] = field(default_factory=dict)
    context_length: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    memory: MemoryNeed | None = None
    pooling: str | None = None
    tokenizer: str | None = None
    special_tokens: dict[str, str | list[str]] = field(default_factory=dict)
    stop_tokens: tuple[str, ...] = ()
    template: str | None = None
    template_origin: str | None = None
    takes_tools: bool = False
    thinks: bool = False


def show_model(name: str, *, context: int | None = None, quantization: str | None = None) -> ShownModel:
    """Look at the model of this name or path. Headers are read, weights are not.

    Args:
        name: as ``windlass list`` has it, or a path. The hub is not asked.
        context: tokens to plan for; None is the model's whole context.
        quantization: scheme to quantize to while loading.

    Raises:
        LoadError: there is no such model.
        ValueError: there is no scheme of this name, or the context is longer than the model's.
    """
    stored = stored_model(name, model_roots())
    listed = list_model(stored)
    licence = read_licence(stored)
    if stored.kind == "partial" or stored.missing:
        return ShownModel(listed, licence, listed.problem)
    try:
        with ExitStack() as stack:
            config = EngineConfig(quantization=quantization, mode="interactive", verbose=False)
            described = describe_model(stored.path, config, lambda *_: None, stack)
            return _shown(listed, licence or _metadata_licence(described), described, config, context)
    except LoadError as error:
        return ShownModel(listed, licence, str(error))


def _shown(
    listed: ListedModel, licence: str | None, described: DescribedModel, config: EngineConfig, context: int | None
) -> ShownModel:
    definition, text, gguf = described.definition, described.text, described.opened.gguf
    template = text.template
    return ShownModel(
        listed,
        licence,
        parameters=count_parameters(definition.program.weights),
        tensor_types={} if gguf is None else tensor_types(gguf),
        context_length=definition.context_length,
        sizes={
            "layers": definition.num_layers,
            "hidden": definition.hidden_size,
            "heads": definition.num_heads,
            "kv_heads": definition.program.num_kv_heads,
            "head_dim": definition.program.head_dim,
            "vocabulary": definition.vocab_size,
        },
        memory=_memory(described, config, context),
        pooling=None if definition.pooling is None else definition.pooling.kind,
        tokenizer=_tokenizer_kind(text, described),
        special_tokens={} if isinstance(text.tokenizer, PlaceholderTokenizer) else dict(text.tokenizer.special_tokens),
        stop_tokens=tuple(text.token_bytes(number).decode(errors="replace") for number in sorted(text.stop_token_ids)),
        template=_template_text(template, described.opened.directory),
        template_origin=_template_origin(template),
        takes_tools=template is not None and (template.supports_tools or text.tools_template is not None),
        thinks=template is not None and template.thinks,
    )


def _memory(described: DescribedModel, config: EngineConfig, context: int | None) -> MemoryNeed:
    definition, page_bytes = described.definition, described.page_bytes
    wanted = context or definition.context_length
    if not 1 <= wanted <= definition.context_length:
        raise ValueError(f"the model's context is {definition.context_length} tokens, not {wanted}")
    usable, weights = usable_bytes(config), described.weight_bytes
    asked = config.with_arguments(max_single_sequence_length=wanted)
    try:
        settle_model(asked, described)
        fits = True
    except (LoadError, ValueError):
        fits = False
    pages = max(0, usable - weights) // page_bytes
    return MemoryNeed(
        context=wanted,
        weights=weights,
        kv_cache=-(-wanted // PAGE_TOKENS) * page_bytes,
        buffers=described.buffer_bytes(asked),
        available=available_bytes(),
        usable=usable,
        fits=fits,
        longest_context=min(definition.context_length, pages * PAGE_TOKENS),
    )


def _tokenizer_kind(text: TextModel, described: DescribedModel) -> str:
    tokenizer = text.tokenizer
    if isinstance(tokenizer, PlaceholderTokenizer):
        return "none"
    decoding = tokenizer.decoding
    kind = "byte-level" if decoding.byte_level else "byte fallback" if decoding.byte_fallback else "without bytes"
    gguf = described.opened.gguf
    if gguf is None:
        return f"{kind} ({tokenizer.path.name})"
    named = [gguf.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre")]
    return f"{kind} ({', '.join(name for name in named if isinstance(name, str))})"


def _template_text(template: PromptTemplate | None, directory: ModelDirectory | None) -> str | None:
    if isinstance(template, ChatTemplate):
        return template.sources["default"]
    if template is None or directory is None or directory.mlc is None:
        return None
    return json.dumps(directory.mlc["conv_template"], indent=2, ensure_ascii=False)


def _template_origin(template: PromptTemplate | None) -> str | None:
    if template is None:
        return None
    return Path(template.origin).name if isinstance(template, ChatTemplate) else MLC_CONFIG_NAME


def _metadata_licence(described: DescribedModel) -> str | None:
    """Return the licence that the metadata or configuration names."""
    gguf = described.opened.gguf
    values = described.opened.config if gguf is None else gguf.metadata
    found = values.get("license" if gguf is None else "general.license")
    return found if isinstance(found, str) and found else None


def read_licence(stored: StoredModel) -> str | None:
    """Return the licence that the front matter of a model's README names, or None; of ``other`` its ``license_name``.

    (huggingface.co/docs/hub/model-cards)
    """
    directory = stored.path if stored.path.is_dir() else stored.path.parent
    try:
        with (directory / "README.md").open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_README_BYTES)
    except OSError:
        return None
    matter = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    if matter is None:
        return None
    values = dict(re.findall(r"^(license|license_name):[ \t]*[\"']?([^\s\"'#\[\]]+)", matter[1], re.MULTILINE))
    return values.get("license_name") if values.get("license") == "other" else values.get("license")
