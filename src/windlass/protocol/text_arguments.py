"""What the server's calls take that run no model: about text, tokens and templates, and about an engine."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, with_config
from typing_extensions import Required, TypedDict

from windlass.protocol.arguments import MAX_TOOLS, STRICT, Message, TokenId


@with_config(STRICT)
class ConversationFields(TypedDict, total=False):
    """A conversation for the model's chat template."""

    model: str | None
    messages: Required[Annotated[list[Message], Field(min_length=1, fail_fast=True)]]
    """OpenAI's message objects."""
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None
    """Function tools that the template shows to the model."""
    chat_template_kwargs: dict[str, Any] | None
    """Further variables for the template."""


@with_config(STRICT)
class TokenizeFields(TypedDict, total=False):
    """Text, or a conversation, to be tokenized as a completion would be."""

    model: str | None
    prompt: str | None
    """Text. It and ``messages`` exclude each other."""
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None
    """OpenAI's message objects."""
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None
    """With ``messages``: function tools that the template shows to the model."""
    chat_template_kwargs: dict[str, Any] | None
    """With ``messages``: further variables for the template."""
    add_special_tokens: bool | None
    """With ``prompt``: begin with the tokenizer's own BOS, if it has one; by default as text completions do."""
    return_token_strs: bool | None
    """Also give the text of each token."""


@with_config(STRICT)
class DetokenizeFields(TypedDict, total=False):
    """Tokens to be turned into text."""

    model: str | None
    tokens: Required[Annotated[list[TokenId], Field(fail_fast=True)]]
    """Token ids."""


@with_config(STRICT)
class LoadAdapterFields(TypedDict, total=False):
    """A LoRA adapter to be loaded; the names are vLLM's."""

    model: str | None
    """The model that it is for; left out, the default one."""
    lora_name: Required[Annotated[str, Field(min_length=1, max_length=128)]]
    """What requests will call it: letters, digits and `. _ - / @ +`."""
    lora_path: Required[Annotated[str, Field(min_length=1)]]
    """Where it is on the server: a directory, or `HF://org/name`."""


@with_config(STRICT)
class UnloadAdapterFields(TypedDict, total=False):
    """A LoRA adapter to be unloaded; the names are vLLM's."""

    model: str | None
    """The model that it is for; left out, the default one."""
    lora_name: Required[Annotated[str, Field(min_length=1, max_length=128)]]
    """What requests call it."""
    lora_int_id: int | None
    """Accepted for compatibility; not used."""


@with_config(STRICT)
class EngineFields(TypedDict, total=False):
    """Which engine is meant."""

    model: str | None
