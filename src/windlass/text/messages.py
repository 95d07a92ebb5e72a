"""OpenAI-shaped messages and tools, brought into the shape that templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from windlass.errors import InvalidRequestError

Message = dict[str, Any]


def refuse_messages(reason: str) -> InvalidRequestError:
    """The error for messages that cannot be turned into a prompt."""
    return InvalidRequestError(reason, param="messages")


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Shallow copies of the messages without absent fields (None, or an empty list of tool calls).

    ``content`` stays, as None when absent. Reasoning is given under both of its usual names.

    Raises:
        InvalidRequestError: no messages, or one that is not an object with a role.
    """
    if isinstance(messages, (str, Mapping)) or not messages:
        raise refuse_messages("messages must be a list of at least one message")
    return [_check_message(index, message) for index, message in enumerate(messages)]


def _check_message(index: int, message: object) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise refuse_messages(f"messages[{index}] must be an object with a role")
    copy = {key: value for key, value in message.items() if value is not None and key != "content"}
    copy["content"] = message.get("content")
    if not copy.get("tool_calls", True):
        del copy["tool_calls"]
    reasoning = copy.get("reasoning_content", copy.get("reasoning"))
    if reasoning is not None:
        copy["reasoning_content"] = copy["reasoning"] = reasoning
    return copy


def text_parts(content: object) -> list[str]:
    """The texts of a message's content: a string, a list of text parts, or None (no text).

    Raises:
        InvalidRequestError: another kind of content, such as an image.
    """
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, (list, tuple)):
        raise refuse_messages("a message's content must be a string or a list of text parts")
    return [_part_text(part) for part in content]


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "refusal") and isinstance(part, Mapping) and isinstance(part.get(kind), str):
        text: str = part[kind]
        return text
    raise refuse_messages('content parts must be {"type": "text", "text": ...}: this model reads text only')


def joined_text(content: object) -> str:
    """The text of a message's content; parts are joined with newlines."""
    return "\n".join(text_parts(content))


def parse_arguments(tool_calls: object) -> list[dict[str, Any]]:
    """The tool calls with ``function.arguments`` as objects, whichever way they were given.

    Raises:
        InvalidRequestError: not a list of function calls, or arguments that are not a JSON object.
    """
    if not isinstance(tool_calls, (list, tuple)):
        raise refuse_messages("tool_calls must be a list")
    return [_parse_call(call) for call in tool_calls]


def _parse_call(call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise refuse_messages("a tool call must be an object with a function that has a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (json.JSONDecodeError, RecursionError) as error:
            raise refuse_messages(f"the arguments of tool call {function['name']!r} are not valid JSON") from error
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise refuse_messages(f"the arguments of tool call {function['name']!r} must be a JSON object")
    return {**call, "function": {**function, "arguments": arguments}}


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Copies of the tools; an empty list when there are none.

    Raises:
        InvalidRequestError: one is not a function tool with a name.
    """
    copies = []
    for index, tool in enumerate(tools or ()):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidRequestError(f"tools[{index}] must be a function tool with a name", param="tools")
        copies.append(dict(tool))
    return copies
