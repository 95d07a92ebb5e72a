"""What the server answers without the model: tokens of a text, text of tokens, a template applied.

Each runs in the engine's preparing thread (``AsyncMLCEngine._run_prepared``), since large input takes long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from windlass.errors import ContextLengthError, InvalidRequestError

if TYPE_CHECKING:
    from windlass.protocol.arguments import ChatArguments
    from windlass.serve.build import LoadedModel
    from windlass.serve.call import Host

_OF_MESSAGES = ("tools", "chat_template_kwargs")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids, the texts of the single tokens if asked for, and how many the longest sequence may have."""

    ids: Sequence[int]
    texts: Sequence[str] | None
    context_length: int


def tokenize(host: Host, fields: Mapping[str, Any]) -> Tokens:
    """Tokenize what ``protocol.text_arguments.TokenizeFields`` describes.

    Raises:
        InvalidRequestError: a field is wrong; ``param`` names it.
        EngineError: no model is loaded.
    """
    from windlass.protocol.arguments import check_fields
    from windlass.protocol.text_arguments import TokenizeFields

    _, model = host._parts()
    checked = check_fields(TokenizeFields, fields)
    if ("prompt" in checked) == ("messages" in checked):
        raise InvalidRequestError("give either prompt or messages", param="prompt")
    if "messages" in checked:
        if checked.get("add_special_tokens"):
            raise InvalidRequestError(
                "add_special_tokens: is for prompt; the template has those of a conversation",
                param="add_special_tokens",
            )
        conversation = _conversation(checked)
        check_length(model, chain.from_iterable(map(_texts, conversation["messages"])), param="messages")
        ids = model.text.encode_chat(**conversation)
    else:
        for name in _OF_MESSAGES:
            if name in checked:
                raise InvalidRequestError(f"{name}: is for messages, not for prompt", param=name)
        check_length(model, [checked["prompt"]], param="prompt")
        ids = model.text.encode_prompt(checked["prompt"], bos=checked.get("add_special_tokens"))
    texts = None
    if checked.get("return_token_strs"):
        texts = [model.text.token_bytes(token_id).decode(errors="replace") for token_id in ids]
    return Tokens(ids, texts, model.sizes.max_single_sequence_length)


def detokenize(host: Host, fields: Mapping[str, Any]) -> str:
    """Return the text of the tokens that ``protocol.text_arguments.DetokenizeFields`` describes.

    Raises:
        InvalidRequestError: a field is wrong, or an id is not in the vocabulary; ``param`` names it.
        EngineError: no model is loaded.
    """
    from windlass.protocol.arguments import check_fields
    from windlass.protocol.text_arguments import DetokenizeFields

    _, model = host._parts()
    ids = check_fields(DetokenizeFields, fields)["tokens"]
    check_ids(ids, model, param="tokens")
    return model.text.decode(ids)


def apply_template(host: Host, fields: Mapping[str, Any]) -> str:
    """Return the prompt of the conversation that ``protocol.text_arguments.ConversationFields`` describes.

    Raises:
        InvalidRequestError: a field is wrong, or the template refuses the conversation; ``param`` names it.
        EngineError: no model is loaded.
    """
    from windlass.protocol.arguments import check_fields
    from windlass.protocol.text_arguments import ConversationFields

    _, model = host._parts()
    return model.text.write_chat(**_conversation(check_fields(ConversationFields, fields)))


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
    messages = [for_template(message) for message in arguments["messages"]]
    check_length(model, chain.from_iterable(map(_texts, messages)), param="messages")
    return text.encode_chat(messages, tools=shown_tools(arguments), template_kwargs=template_kwargs)


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


def _texts(message: Mapping[str, Any]) -> list[str]:
    """A message's text, alone or in parts."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return [text for text in texts if isinstance(text, str)]


def check_ids(ids: Sequence[int], model: LoadedModel, *, param: str) -> None:
    """Raise InvalidRequestError unless all ``ids`` are in the vocabulary."""
    vocab_size = model.definition.vocab_size
    outside = next((token_id for token_id in ids if token_id >= vocab_size), None)
    if outside is not None:
        raise InvalidRequestError(f"token id {outside} is not in the vocabulary of {vocab_size} tokens", param=param)


def for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message as templates take it: OpenAI's newer name of the system role is one that they do not know."""
    return {**message, "role": "system"} if message["role"] == "developer" else {**message}


def _conversation(checked: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "messages": [for_template(message) for message in checked["messages"]],
        "tools": checked.get("tools"),
        "template_kwargs": checked.get("chat_template_kwargs"),
    }
