"""The prompt of a call: a conversation or given text or ids, held to what the model can take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from windlass.errors import ContextLengthError, InvalidRequestError

if TYPE_CHECKING:
    from windlass.protocol.arguments import ChatArguments
    from windlass.serve.build import LoadedModel


def prompt_ids_of(model: LoadedModel, arguments: ChatArguments) -> list[int]:
    """Return the prompt of a chat call.

    Args:
        arguments: checked, without None.

    Raises:
        InvalidRequestError: the template refuses the conversation; ``param`` names the argument at fault.
        ContextLengthError: it is far too long.
    """
    text = model.text
    template_kwargs = arguments.get("chat_template_kwargs") or {}
    if (effort := arguments.get("reasoning_effort")) is not None:
        template_kwargs = {**text.effort_arguments(effort), **template_kwargs}
    return encode_messages(model, arguments["messages"], tools=shown_tools(arguments), template_kwargs=template_kwargs)


def encode_messages(
    model: LoadedModel,
    messages: Iterable[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    template_kwargs: Mapping[str, Any] | None,
) -> list[int]:
    """Return the prompt of a conversation.

    Raises:
        InvalidRequestError: the template refuses it; ``param`` names the argument at fault.
        ContextLengthError: it is far too long.
    """
    shown = [for_template(message) for message in messages]
    check_length(model, chain.from_iterable(map(_texts, shown)), param="messages")
    return model.text.encode_chat(shown, tools=tools, template_kwargs=template_kwargs)


def check_length(model: LoadedModel, texts: Iterable[str], *, param: str) -> None:
    """Raise ContextLengthError when ``texts`` are together too long for a prompt, without tokenizing them."""
    context = model.sizes.max_single_sequence_length
    num_bytes = sum(len(text.encode(errors="surrogatepass")) for text in texts)
    if model.text.cannot_fit(num_bytes, context):
        raise ContextLengthError(
            f"this model's maximum context length is {context} tokens: {num_bytes} bytes of text do not fit",
            param=param,
        )


def shown_tools(arguments: ChatArguments) -> list[dict[str, Any]] | None:
    """Return the tools that the model of a chat call is shown, and may call."""
    return arguments.get("tools") if arguments.get("tool_choice") != "none" else None


def check_ids(ids: Sequence[int], model: LoadedModel, *, param: str) -> None:
    """Raise InvalidRequestError unless all ``ids`` are in the vocabulary."""
    vocab_size = model.definition.vocab_size
    outside = next((token_id for token_id in ids if token_id >= vocab_size), None)
    if outside is not None:
        raise InvalidRequestError(f"token id {outside} is not in the vocabulary of {vocab_size} tokens", param=param)


def for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message as templates take it: OpenAI's newer name of the system role is one that they do not know."""
    return {**message, "role": "system"} if message["role"] == "developer" else {**message}


def _texts(message: Mapping[str, Any]) -> list[str]:
    """A message's text, alone or in parts."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return [text for text in texts if isinstance(text, str)]
