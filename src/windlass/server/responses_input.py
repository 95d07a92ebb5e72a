"""What a request to ``/v1/responses`` asks, as the arguments of a chat call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any, cast

from windlass.errors import InvalidRequestError
from windlass.protocol.arguments import ChatArguments
from windlass.protocol.responses_api import (
    INPUT_ITEMS,
    OTHER_TOOLS,
    FunctionTool,
    InputFunctionCall,
    InputFunctionOutput,
    InputMessage,
    InputReasoning,
    ResponsesBody,
)
from windlass.protocol.validation import validate
from windlass.server.translated import text_content

_NOTHING_KEPT = "this server keeps nothing between requests"
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_LOGPROBS = "message.output_text.logprobs"
_INCLUDES = (
    "reasoning.encrypted_content",
    "web_search_call.results",
    "web_search_call.action.sources",
    "file_search_call.results",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "message.input_image.image_url",
)
"""Parts of an answer that only come from what this server does not have."""

PARAMS = {"messages": "input", "max_tokens": "max_output_tokens", "reasoning_effort": "reasoning"}
"""Argument of a chat call -> the field of a request that it came from."""


def check_responses_body(body: Mapping[str, Any]) -> ResponsesBody:
    """Return ``body`` without what is None.

    Raises:
        InvalidRequestError: a field is unknown, wrong, or asks for what this server does not do; ``param`` names it.
    """
    checked = validate(ResponsesBody, {name: value for name, value in body.items() if value is not None})
    for name, refused in (
        ("previous_response_id", f"{_NOTHING_KEPT}: send the whole conversation as input"),
        ("conversation", f"{_NOTHING_KEPT}: send the whole conversation as input"),
        ("prompt", f"{_NOTHING_KEPT}: send instructions and input"),
        ("background", f"{_NOTHING_KEPT}: use stream"),
        ("top_logprobs", "logprobs are not supported here; use /v1/chat/completions"),
    ):
        if checked.get(name):
            raise InvalidRequestError(f"{name}: {refused}", param=name, code="unsupported_parameter")
    if checked.get("truncation", "disabled") != "disabled":
        raise InvalidRequestError("truncation: the only value is 'disabled'", param="truncation")
    form = ((checked.get("text") or {}).get("format") or {"type": "text"})["type"]
    if form != "text":
        raise InvalidRequestError(
            f"text.format: {short(form)} is not supported in this version; accepted is 'text'", param="text"
        )
    if checked.get("tool_choice", "auto") not in ("auto", "none"):
        raise InvalidRequestError(
            "tool_choice: a forced tool call is not supported in this version; accepted are 'auto' and 'none'",
            param="tool_choice",
        )
    for name in checked.get("include") or ():
        if name == _LOGPROBS:
            raise InvalidRequestError(
                f"include: {name!r} is not supported; use logprobs of /v1/chat/completions", param="include"
            )
        if name not in _INCLUDES:
            accepted = ", ".join(_INCLUDES)
            raise InvalidRequestError(f"include: {short(name)} is unknown; accepted are {accepted}", param="include")
    return checked


def chat_arguments(body: ResponsesBody) -> ChatArguments:
    """Return the arguments of the chat call that answers a request.

    Args:
        body: checked, without None.

    Raises:
        InvalidRequestError: an item of the input, or a tool, is not understood; ``param`` names it.
    """
    arguments: ChatArguments = {"messages": _messages(body)}
    tools = function_tools(body)
    if tools:
        arguments["tools"] = [_chat_tool(tool) for tool in tools]
        arguments["tool_choice"] = body.get("tool_choice", "auto")
        arguments["parallel_tool_calls"] = body.get("parallel_tool_calls", True)
    if "max_output_tokens" in body:
        arguments["max_tokens"] = body["max_output_tokens"]
    if "temperature" in body:
        arguments["temperature"] = body["temperature"]
    if "top_p" in body:
        arguments["top_p"] = body["top_p"]
    effort = (body.get("reasoning") or {}).get("effort")
    if effort is not None:
        arguments["reasoning_effort"] = effort
    return arguments


def function_tools(body: ResponsesBody) -> list[FunctionTool]:
    """Return the tools that the model is shown: the functions.

    Raises:
        InvalidRequestError: a tool is not understood, or there are tools and no function among them.
    """
    tools = body.get("tools") or []
    functions = []
    for index, tool in enumerate(tools):
        kind = tool.get("type")
        if kind == "function":
            functions.append(validate(FunctionTool, tool, at=f"tools[{index}]"))
        elif not isinstance(kind, str) or kind not in OTHER_TOOLS:
            reason = f"tools[{index}]: the type of a tool must be 'function', not {short(kind)}"
            raise InvalidRequestError(reason, param="tools")
    if tools and not functions:
        kinds = ", ".join(sorted({tool["type"] for tool in tools}))
        raise InvalidRequestError(
            f"tools: this server runs no tools of its own ({kinds}); send functions", param="tools"
        )
    return functions


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    function = {name: value for name, value in tool.items() if name != "type" and value is not None}
    return {"type": "function", "function": function}


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    conversation = _Conversation()
    if body.get("instructions"):
        conversation.say("system", [body["instructions"] or ""])
    items = body["input"]
    if isinstance(items, str):
        conversation.say("user", [items])
    else:
        for index, item in enumerate(items):
            conversation.add(item, f"input[{index}]")
    messages = conversation.messages()
    if not messages:
        raise InvalidRequestError("input: nothing is said in it", param="input")
    return messages


class _Conversation:
    """Puts the items of an input together to messages.

    What an assistant thought, said and called in one turn stands in several items, and in one message.
    """

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None
        self._names: dict[str, str] = {}

    def messages(self) -> list[dict[str, Any]]:
        """Return what was said so far."""
        self._end_turn()
        return self._messages

    def say(self, role: str, texts: Sequence[str]) -> None:
        """Add a message."""
        if role == "assistant":
            if self._turn is not None and (self._turn.get("content") or "tool_calls" in self._turn):
                self._end_turn()
            self._assistant()["content"] = text_content(texts)
            return
        self._end_turn()
        first = self._messages[0] if len(self._messages) == 1 else None
        if role in ("system", "developer") and first is not None and first["role"] == "system":
            # Many templates take one system message only, and only as the first.
            first["content"] = "\n\n".join([first["content"], *texts])
        elif role in ("system", "developer") and not self._messages:
            self._messages.append({"role": "system", "content": "\n\n".join(texts)})
        else:
            self._messages.append({"role": role, "content": text_content(texts)})

    def add(self, item: dict[str, Any], at: str) -> None:
        """Add an item, which stands in the request at ``at``."""
        kind = item.get("type") or "message"
        if kind == "item_reference":
            raise InvalidRequestError(f"{at}: {_NOTHING_KEPT}: send the item itself", param=at)
        if not isinstance(kind, str) or kind not in INPUT_ITEMS:
            accepted = ", ".join(INPUT_ITEMS)
            reason = f"{at}: items of type {short(kind)} are not supported; accepted are {accepted}"
            raise InvalidRequestError(reason, param=at)
        checked: object = validate(INPUT_ITEMS[kind], item, at=at)
        if kind == "message":
            message = cast(InputMessage, checked)
            self.say(message["role"], _texts(message["content"], f"{at}.content"))
        elif kind == "function_call":
            self._call(cast(InputFunctionCall, checked))
        elif kind == "function_call_output":
            self._output(cast(InputFunctionOutput, checked), at)
        else:
            self._think(cast(InputReasoning, checked))

    def _assistant(self) -> dict[str, Any]:
        if self._turn is None:
            self._turn = {"role": "assistant", "content": None}
        return self._turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._messages.append(self._turn)
            self._turn = None

    def _call(self, item: InputFunctionCall) -> None:
        self._names[item["call_id"]] = item["name"]
        function = {"name": item["name"], "arguments": item["arguments"]}
        calls = self._assistant().setdefault("tool_calls", [])
        calls.append({"id": item["call_id"], "type": "function", "function": function})

    def _output(self, item: InputFunctionOutput, at: str) -> None:
        call_id = item["call_id"]
        if call_id not in self._names:
            reason = f"{at}: there is no function_call with the call_id {short(call_id)} before it"
            raise InvalidRequestError(f"{reason}; {_NOTHING_KEPT}", param=at)
        self._end_turn()
        content = text_content(_texts(item["output"], f"{at}.output"))
        self._messages.append(
            {"role": "tool", "tool_call_id": call_id, "name": self._names[call_id], "content": content}
        )

    def _think(self, item: InputReasoning) -> None:
        parts = item.get("content") or item.get("summary") or []
        text = "\n".join(str(part["text"]) for part in parts if isinstance(part.get("text"), str))
        self._end_turn()
        if text:
            self._assistant()["reasoning_content"] = text


def _texts(content: str | list[dict[str, Any]], at: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type")
        field = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
        if field is None or not isinstance(part.get(field), str):
            accepted = ", ".join(_TEXT_PARTS)
            reason = (
                f"{at}[{index}]: must be a part with text ({accepted}), not {short(kind)}: the model reads text only"
            )
            raise InvalidRequestError(reason, param=at.partition(".")[0])
        texts.append(part[field])
    return texts
