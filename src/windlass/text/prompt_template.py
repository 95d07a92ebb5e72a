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

    def effort_arguments(self, effort: str) -> dict[str, Any]:
        """The template arguments for a ``reasoning_effort`` of OpenAI's; none when the template knows nothing of it."""

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
        """The template applied to the messages; special tokens in them are not kept apart, as ``encode`` does.

        Raises:
            InvalidRequestError: the template does not accept these messages.
        """

    def write(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text that ``encode`` tokenizes. It does not show which special tokens in it came from the messages.

        Raises:
            InvalidRequestError: as :meth:`encode`.
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
