"""What a request to ``/v1/messages`` asks, as the arguments of a chat call."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as short
from typing import Any, TypeVar, cast

from windlass.errors import InvalidRequestError
from windlass.protocol.arguments import ChatArguments, Effort
from windlass.protocol.messages_api import (
    INPUT_BLOCKS,
    TEXT_ONLY,
    Blocks,
    InputMessage,
    InputText,
    InputThinking,
    InputToolResult,
    InputToolUse,
    MessagesBody,
    PromptBody,
    Tool,
)
from windlass.protocol.validation import validate
from windlass.server.translated import text_content

Body = TypeVar("Body", bound=PromptBody)

_EFFORT: Effort = "high"
"""With which Anthropic's models think where a request says nothing."""

_NOT_FOR_THE_MODEL = "x-anthropic-billing-header:"
"""How a block of the system prompt begins that Claude Code adds for the provider's books. It is another one in each
request, so with it no prompt would begin as the one before."""


def check_messages_body(kind: type[Body], body: Mapping[str, Any]) -> Body:
    """Return ``body`` without what is None.

    Args:
        kind: the type of the body.

    Raises:
        InvalidRequestError: a field is unknown, wrong, or asks for what this server does not do; ``param`` names it.
    """
    checked = validate(kind, {name: value for name, value in body.items() if value is not None})
    choice = cast(PromptBody, checked).get("tool_choice")
    if choice is not None and choice["type"] not in ("auto", "none"):
        raise InvalidRequestError(
            "tool_choice: a forced tool call is not supported in this version; accepted are 'auto' and 'none'",
            param="tool_choice",
        )
    return checked


def chat_arguments(body: MessagesBody) -> ChatArguments:
    """Return the arguments of the chat call that answers a request.

    Args:
        body: checked, without None.

    Raises:
        InvalidRequestError: a message or a tool is not understood; ``param`` names it.
    """
    arguments = prompt_arguments(body)
    arguments["max_tokens"] = body["max_tokens"]
    if body.get("stop_sequences"):
        arguments["stop"] = body["stop_sequences"]
    if "temperature" in body:
        arguments["temperature"] = body["temperature"]
    if "top_p" in body:
        arguments["top_p"] = body["top_p"]
    if "top_k" in body:
        arguments["top_k"] = body["top_k"]
    return arguments


def prompt_arguments(body: PromptBody) -> ChatArguments:
    """Return those arguments that make the prompt; as ``chat_arguments``."""
    arguments: ChatArguments = {"messages": _messages(body)}
    choice = body.get("tool_choice") or {"type": "auto"}
    tools = [_chat_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.get("tools") or [])]
    if tools:
        arguments["tools"] = tools
        arguments["tool_choice"] = choice["type"]
        arguments["parallel_tool_calls"] = not choice.get("disable_parallel_tool_use")
    thinking = body.get("thinking")
    if thinking is not None:
        effort = (body.get("output_config") or {}).get("effort") or _EFFORT
        arguments["reasoning_effort"] = "none" if thinking["type"] == "disabled" else effort
    return arguments


def _chat_tool(tool: dict[str, Any], at: str) -> dict[str, Any]:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise InvalidRequestError(f"{at}: this server runs no tools of its own ({short(kind)})", param="tools")
    checked = validate(Tool, tool, at=at)
    function = {
        "name": checked["name"],
        "description": checked.get("description"),
        "parameters": checked["input_schema"],
    }
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _messages(body: PromptBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    blocks = _blocks(body.get("system") or [], INPUT_BLOCKS["system"], "system")
    texts = [block["text"] for block in blocks if not block["text"].startswith(_NOT_FOR_THE_MODEL)]
    if texts:
        messages.append({"role": "system", "content": "\n\n".join(texts)})
    for index, message in enumerate(body["messages"]):
        at = f"messages[{index}]"
        checked = validate(InputMessage, message, at=at)
        role = checked["role"]
        blocks = _blocks(checked["content"], INPUT_BLOCKS[role], f"{at}.content")
        messages += _assistant(blocks, names) if role == "assistant" else _others(role, blocks, names, at)
    if messages[-1]["role"] == "assistant":
        raise InvalidRequestError(
            "messages: the last message must not be the assistant's: answers cannot be begun for the model",
            param="messages",
        )
    return messages


def _blocks(content: str | Blocks, kinds: Mapping[str, type], at: str) -> Blocks:
    """The checked blocks of a content, which may be of ``kinds``; ``at`` is where it stands in the request."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    checked = []
    for index, block in enumerate(content):
        kind = block.get("type")
        if not isinstance(kind, str) or kind not in kinds:
            reason = f"{at}[{index}]: a block here is of type {', '.join(kinds)}, not {short(kind)}: {TEXT_ONLY}"
            raise InvalidRequestError(reason, param=at.partition(".")[0])
        checked.append(cast(dict[str, Any], validate(kinds[kind], block, at=f"{at}[{index}]")))
    return checked


def _assistant(blocks: Blocks, names: dict[str, str]) -> list[dict[str, Any]]:
    """What the model thought, said and called in one turn; notes the names of the tools by the ids of the calls."""
    texts = [cast(InputText, block)["text"] for block in blocks if block["type"] == "text"]
    thoughts = [cast(InputThinking, block)["thinking"] for block in blocks if block["type"] == "thinking"]
    calls = [cast(InputToolUse, block) for block in blocks if block["type"] == "tool_use"]
    names.update({call["id"]: call["name"] for call in calls})
    message: dict[str, Any] = {"role": "assistant", "content": text_content(texts) if texts else None}
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["input"]}}
            for call in calls
        ]
    return [message]


def _others(role: str, blocks: Blocks, names: Mapping[str, str], at: str) -> list[dict[str, Any]]:
    """A message of the user, or of the system: the results of tools are messages of their own."""
    messages: list[dict[str, Any]] = []
    texts: list[str] = []
    for block in blocks:
        if block["type"] == "text":
            texts.append(block["text"])
            continue
        if texts:
            messages.append({"role": role, "content": text_content(texts)})
            texts = []
        result = cast(InputToolResult, block)
        call_id = result["tool_use_id"]
        if call_id not in names:
            raise InvalidRequestError(f"{at}: there is no tool_use with the id {short(call_id)} before it", param=at)
        parts = _blocks(result.get("content") or "", INPUT_BLOCKS["system"], f"{at}.content")
        content = text_content([part["text"] for part in parts])
        messages.append({"role": "tool", "tool_call_id": call_id, "name": names[call_id], "content": content})
    if texts or not messages:
        messages.append({"role": role, "content": text_content(texts)})
    return messages
