"""What the two kinds of chat templates have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from windlass.text.tokenizer import Tokenizer


class PromptTemplate(Protocol):
    """Turns messages into a prompt. Immutable, safe to use from many threads."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end the assistant's turn."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end the assistant's turn."""

    @property
    def thinks(self) -> bool:
        """Whether the models of this template think aloud between ``<think>`` and ``</think>``."""

    @property
    def switches_thinking(self) -> bool:
        """Whether the template takes ``enable_thinking``, which says whether the model is to think aloud."""

    @property
    def supports_tools(self) -> bool:
        """Whether the template shows tools to the model."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        """The prompt as text, special tokens as their names. For people, and for tests; prompts come from ``encode``.

        Raises:
            InvalidRequestError: the template does not accept these messages.
        """

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt's token ids for OpenAI-shaped messages; strings of special tokens in them stay plain text.

        Raises:
            InvalidRequestError: the template does not accept these messages (``param`` "messages"), has no tool
                calling ("tools"), or does not take such an argument ("chat_template_kwargs").
        """
