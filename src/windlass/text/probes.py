"""Finding out what a chat template expects, by rendering small conversations with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from windlass.errors import InvalidRequestError
from windlass.text.tokenizer import Tokenizer

Render = Callable[..., str]

_QUESTION = "probe question"
_ANSWER = "probe answer"
_CALL_ID = "probe0001"  # nine letters and digits: what Mistral's templates insist on
_MARKER = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Za-z_]{1,64}\]")


@dataclass(frozen=True, slots=True)
class Habits:
    """How a template wants its messages.

    Attributes:
        string_content: content may be a string.
        list_content: content may be a list of text parts.
        object_arguments: the arguments of tool calls are objects, not JSON text.
        null_content: a message with tool calls and no text has the content None, not "".
        tools: tools given to the template appear in the prompt.
        developer: the role "developer" is known.
    """

    string_content: bool
    list_content: bool
    object_arguments: bool
    null_content: bool
    tools: bool
    developer: bool


def renders(render: Render) -> bool:
    """Whether the template renders the simplest conversation."""
    return _try(render, [_user(_QUESTION)]) != ""


def probe_habits(render: Render, source: str) -> Habits:
    """The habits of a template.

    Args:
        render: ``ChatTemplate.render``.
        source: the template's source.
    """
    as_string = _try(render, [_user(_QUESTION)])
    as_list = _try(render, [_user([{"type": "text", "text": _QUESTION}, {"type": "text", "text": _ANSWER}])])
    list_content = _QUESTION in as_list and _ANSWER in as_list and not re.search(r"""['"]text['"]""", as_list)
    tool = {"name": "probe_tool", "description": "A probe.", "parameters": {"type": "object", "properties": {}}}
    with_tools = _try(render, [_user(_QUESTION)], tools=[{"type": "function", "function": tool}])
    objects = [_try(render, _call(content, {"probe_key": "probe value"})) for content in ("", None)]
    texts = [_try(render, _call(content, '{"probe_key": "probe value"}')) for content in ("", None)]
    # A template that prints a dict shows Python's quotes, so it was written for JSON text.
    object_arguments = any("probe_key" in text and "'probe_key'" not in text for text in objects)
    object_arguments = object_arguments or not any("probe_key" in text for text in texts)
    with_null = (objects if object_arguments else texts)[1]
    return Habits(
        string_content=_QUESTION in as_string or not list_content,
        list_content=list_content,
        object_arguments=object_arguments,
        null_content="probe_key" in with_null and "None" not in with_null,
        tools="probe_tool" in with_tools,
        developer="developer" in source,
    )


def find_end_of_turn(render: Render, tokenizer: Tokenizer | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """What ends the assistant's turn: (strings, token ids); both empty when the template does not show it.

    It is the special token, or else the marker such as ``<|im_end|>``, that follows an assistant's last message. A
    conversation that goes on is looked at only when the last message shows nothing: some formats end a message that
    is not the last with a token that does not end the turn.
    """
    if tokenizer is None:
        return (), ()
    ended = [_user(_QUESTION), {"role": "assistant", "content": _ANSWER}]
    for messages in (ended, [*ended, _user(_QUESTION)]):
        text = _try(render, messages, add_generation_prompt=False)
        follows = text.rpartition(_ANSWER)[2].lstrip() if _ANSWER in text else ""
        special = tokenizer.special_at_start(follows)
        marker = _MARKER.match(follows)
        written = special or (marker[0] if marker else "")
        token_id = tokenizer.added_token_id(written)
        if token_id is not None:
            return (), (token_id,)
        if written:
            return (written,), ()
    return (), ()


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _call(content: str | None, arguments: Any) -> list[dict[str, Any]]:
    function = {"name": "probe_tool", "arguments": arguments}
    calls = [{"id": _CALL_ID, "type": "function", "function": function}]
    return [_user(_QUESTION), {"role": "assistant", "content": content, "tool_calls": calls}]


def _try(render: Render, messages: list[dict[str, Any]], **arguments: Any) -> str:
    try:
        return render(messages, **arguments)
    except InvalidRequestError:
        return ""
