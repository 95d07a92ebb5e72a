"""What the server answers without the model: tokens of a text, text of tokens, a template applied.

Each runs in the engine's preparing thread (``AsyncMLCEngine._run_prepared``), since large input takes long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from windlass.errors import InvalidRequestError
from windlass.serve.prompts import check_ids, check_length, encode_messages, for_template

if TYPE_CHECKING:
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
        ids = encode_messages(
            model,
            checked["messages"],
            tools=checked.get("tools"),
            template_kwargs=checked.get("chat_template_kwargs"),
        )
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
    checked = check_fields(ConversationFields, fields)
    return model.text.write_chat(
        [for_template(message) for message in checked["messages"]],
        tools=checked.get("tools"),
        template_kwargs=checked.get("chat_template_kwargs"),
    )
