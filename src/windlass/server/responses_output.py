"""Chat answers as OpenAI's Responses: the events of a stream, and the whole object."""

from __future__ import annotations

import secrets
import time
from typing import Any

from windlass.protocol.responses import ChatCompletion, ChatCompletionChunk, Finish, Usage
from windlass.protocol.responses_api import (
    FunctionCallItem,
    IncompleteDetails,
    InputTokensDetails,
    MessageItem,
    OutputItem,
    OutputText,
    OutputTokensDetails,
    ReasoningItem,
    ReasoningText,
    Response,
    ResponseError,
    ResponsesBody,
    ResponseUsage,
    Status,
)
from windlass.server.answer_parts import AnswerParts, Closed, Opened, Part, Step, delta_of
from windlass.server.responses_input import function_tools

Event = dict[str, Any]

_ID_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}
_DELTAS = {
    "text": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "call": "response.function_call_arguments.delta",
}


def begin_response(body: ResponsesBody, *, model: str, temperature: float, top_p: float) -> Response:
    """Return the response to a request, before the model has said anything.

    Args:
        body: checked, without None.
        model: the name of the model that answers.
        temperature: what is in force where the request says nothing; so is ``top_p``.

    Raises:
        InvalidRequestError: a tool is not understood.
    """
    tools = [{"description": None, "parameters": None, **tool, "strict": False} for tool in function_tools(body)]
    reasoning = body.get("reasoning") or {}
    return Response(
        id=f"resp_{secrets.token_hex(24)}",
        created_at=int(time.time()),
        instructions=body.get("instructions"),
        max_output_tokens=body.get("max_output_tokens"),
        metadata=body.get("metadata") or {},
        model=model,
        parallel_tool_calls=body.get("parallel_tool_calls", True) is not False,
        reasoning={"effort": reasoning.get("effort"), "summary": None},
        temperature=temperature if (asked := body.get("temperature")) is None else asked,
        text={"format": {"type": "text"}},
        tool_choice="none" if body.get("tool_choice") == "none" else "auto",
        tools=tools,
        top_p=top_p if (asked := body.get("top_p")) is None else asked,
    )


class ResponseWriter:
    """Makes the events of one response, and the response itself, of what a chat call gives.

    The events are numbered from 0. ``begin`` comes first; exactly one of ``end`` and ``fail`` comes last.

    Attributes:
        response: the response as far as it is known.
    """

    def __init__(self, response: Response) -> None:
        self.response = response
        self._parts = AnswerParts()
        self._finish: Finish | None = None
        self._item_id = ""
        self._is_cut = False
        self._num_events = 0

    def begin(self) -> list[Event]:
        """Return the events that say that the request was accepted."""
        return [self._whole("response.created"), self._whole("response.in_progress")]

    def add(self, chunk: ChatCompletionChunk) -> list[Event]:
        """Return the events of a chunk."""
        events: list[Event] = []
        for choice in chunk.choices:
            events += self._events(self._parts.add(choice.delta))
            self._finish = choice.finish_reason or self._finish
        return events

    def add_whole(self, completion: ChatCompletion) -> list[Event]:
        """Return the events of a whole answer."""
        choice = completion.choices[0]
        self._finish = choice.finish_reason
        return self._events(self._parts.add(delta_of(choice.message)))

    def end(self, usage: Usage) -> list[Event]:
        """Return the last events of an answer that came to its end."""
        self._is_cut = self._finish == "length"
        events = self._events(self._parts.end())
        self.response.usage = _usage(usage)
        self.response.completed_at = int(time.time())
        self.response.status = "incomplete" if self._is_cut else "completed"
        if self._is_cut:
            self.response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
        return [*events, self._whole(f"response.{self.response.status}")]

    def fail(self, message: str) -> list[Event]:
        """Return the last events of an answer that an error cut."""
        self._is_cut = True
        events = self._events(self._parts.close())
        self.response.status = "failed"
        self.response.error = ResponseError(code="server_error", message=message)
        return [*events, self._whole("response.failed")]

    def _whole(self, kind: str) -> Event:
        return self._event(kind, response=self.response.to_json())

    def _event(self, kind: str, **fields: Any) -> Event:
        number, self._num_events = self._num_events, self._num_events + 1
        return {"type": kind, "sequence_number": number, **fields}

    def _events(self, steps: list[Step]) -> list[Event]:
        events: list[Event] = []
        for step in steps:
            if isinstance(step, Opened):
                events += self._open(step.part)
            elif isinstance(step, Closed):
                events += self._close(step.part)
            else:
                events.append(self._of_part(_DELTAS[step.part.kind], step.part, delta=step.text))
        return events

    def _open(self, part: Part) -> list[Event]:
        self._item_id = f"{_ID_PREFIXES[part.kind]}_{secrets.token_hex(24)}"
        item = _item(self._item_id, part, "in_progress")
        events = [self._event("response.output_item.added", output_index=part.index, item=item.model_dump())]
        if part.kind != "call":
            events.append(self._of_part("response.content_part.added", part, part=_content(part, "").model_dump()))
        return events

    def _close(self, part: Part) -> list[Event]:
        is_whole = part.is_whole_call if part.kind == "call" else not self._is_cut
        item = _item(self._item_id, part, "completed" if is_whole else "incomplete")
        self.response.output.append(item)
        if part.kind == "call":
            kind = "response.function_call_arguments.done"
            events = [self._of_part(kind, part, name=part.name, arguments=part.text)]
        else:
            content = _content(part, part.text)
            events = [
                self._of_part(f"response.{content.type}.done", part, text=part.text),
                self._of_part("response.content_part.done", part, part=content.model_dump()),
            ]
        return [*events, self._event("response.output_item.done", output_index=part.index, item=item.model_dump())]

    def _of_part(self, kind: str, of: Part, /, **fields: Any) -> Event:
        if of.kind != "call":
            fields["content_index"] = 0
        if kind.startswith("response.output_text."):
            fields["logprobs"] = []
        return self._event(kind, item_id=self._item_id, output_index=of.index, **fields)


def whole_response(response: Response, completion: ChatCompletion) -> Response:
    """Return the response with the answer in it."""
    writer = ResponseWriter(response)
    writer.add_whole(completion)
    writer.end(completion.usage)
    return writer.response


def _item(item_id: str, part: Part, status: Status) -> OutputItem:
    # What a part has already when it is opened follows in deltas.
    is_new = status == "in_progress"
    if part.kind == "call":
        arguments = "" if is_new else part.text
        return FunctionCallItem(id=item_id, status=status, call_id=part.id, name=part.name, arguments=arguments)
    content = [] if is_new else [_content(part, part.text).model_dump()]
    if part.kind == "text":
        return MessageItem.model_validate({"id": item_id, "status": status, "content": content})
    return ReasoningItem.model_validate({"id": item_id, "status": status, "content": content})


def _content(part: Part, text: str) -> OutputText | ReasoningText:
    return OutputText(text=text) if part.kind == "text" else ReasoningText(text=text)


def _usage(usage: Usage) -> ResponseUsage:
    cached = usage.prompt_tokens_details
    details = usage.completion_tokens_details
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=cached.cached_tokens if cached else 0),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=details.reasoning_tokens if details else 0),
        total_tokens=usage.total_tokens,
    )
