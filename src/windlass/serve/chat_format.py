"""Answers as OpenAI's chat objects: content, reasoning, tool calls, logprobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from windlass.engine.request import FinishReason
from windlass.protocol.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    CompletionTokensDetails,
    FunctionCall,
    FunctionCallDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallMessage,
    TopLogprob,
    Usage,
    unchecked,
)
from windlass.serve.call import CallInfo
from windlass.serve.mailbox import Piece, ScoredToken
from windlass.text.answer_events import (
    Answer,
    AnswerEvent,
    ContentText,
    Parser,
    ReasoningText,
    ToolCallArguments,
    ToolCallEnded,
    ToolCallStarted,
)

Finish = Literal["stop", "length", "tool_calls"]


class ChatFormat:
    """Pieces as chat objects, each choice through a parser of its own. The first chunk of a choice carries the role."""

    def __init__(self, info: CallInfo, *, new_parser: Callable[[], Parser], with_logprobs: bool) -> None:
        self._info = info
        self._with_logprobs = with_logprobs
        self._parsers = [new_parser() for _ in range(info.num_choices)]
        self._begun: set[int] = set()
        self._called: set[int] = set()
        self._num_reasoning = [0] * info.num_choices

    def chunk(self, piece: Piece) -> ChatCompletionChunk | None:
        """Return the stream element of one piece; None when all of it is held back."""
        events = self._events(piece)
        delta = _delta(events)
        if any(isinstance(event, ToolCallEnded) for event in events):
            self._called.add(piece.index)
        if piece.index not in self._begun:
            delta.role = "assistant"
            if delta.reasoning is None and delta.tool_calls is None:
                delta.content = delta.content or ""
        elif not (delta.content or delta.reasoning or delta.tool_calls or piece.reason or piece.scored):
            return None
        self._begun.add(piece.index)
        return self._chunk(
            [
                unchecked(
                    ChatChunkChoice,
                    index=piece.index,
                    delta=delta,
                    finish_reason=_finish(piece.reason, called=piece.index in self._called) if piece.reason else None,
                    logprobs=self._logprobs([piece]),
                    stop_string=piece.stop_string,
                )
            ]
        )

    def usage_chunk(self, usage: Usage) -> ChatCompletionChunk:
        """Return the stream element that closes a stream with ``include_usage``."""
        return self._chunk([], self._with_reasoning(usage))

    def response(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> ChatCompletion:
        """Return the whole response."""
        return unchecked(
            ChatCompletion,
            id=self._info.id,
            created=self._info.created,
            model=self._info.model,
            choices=[self._choice(pieces) for pieces in choices],
            usage=self._with_reasoning(usage),
        )

    def _choice(self, pieces: Sequence[Piece]) -> ChatChoice:
        answer = Answer()
        for piece in pieces:
            for event in self._events(piece):
                answer.add(event)
        last = pieces[-1]
        if last.reason is None:
            raise RuntimeError("a call ended without a finish reason")
        return unchecked(
            ChatChoice,
            index=last.index,
            message=_message(answer),
            finish_reason=_finish(last.reason, called=bool(answer.tool_calls)),
            logprobs=self._logprobs(pieces),
            stop_string=last.stop_string,
        )

    def _events(self, piece: Piece) -> list[AnswerEvent]:
        parser = self._parsers[piece.index]
        events = parser.push(piece.text)
        if piece.reason:
            events += parser.flush()
        if any(isinstance(event, ReasoningText) for event in events):
            self._num_reasoning[piece.index] = piece.num_tokens
        return events

    def _with_reasoning(self, usage: Usage) -> Usage:
        if not any(self._num_reasoning):
            return usage
        details = CompletionTokensDetails(reasoning_tokens=sum(self._num_reasoning))
        return usage.model_copy(update={"completion_tokens_details": details})

    def _logprobs(self, pieces: Sequence[Piece]) -> ChatLogprobs | None:
        if not self._with_logprobs:
            return None
        return ChatLogprobs(content=[_token_logprob(scored) for piece in pieces for scored in piece.scored])

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
        return unchecked(
            ChatCompletionChunk,
            id=self._info.id,
            created=self._info.created,
            model=self._info.model,
            choices=choices,
            usage=usage,
        )


def _delta(events: Sequence[AnswerEvent]) -> ChatDelta:
    """What the events add. Of a call that breaks after it was passed on, what followed comes as content."""
    content = "".join(event.text for event in events if isinstance(event, ContentText))
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningText))
    calls = [_tool_call_delta(event) for event in events if isinstance(event, (ToolCallStarted, ToolCallArguments))]
    return unchecked(
        ChatDelta,
        content=content or None,
        reasoning=reasoning or None,
        reasoning_content=reasoning or None,
        tool_calls=calls or None,
    )


def _tool_call_delta(event: ToolCallStarted | ToolCallArguments) -> ToolCallDelta:
    if isinstance(event, ToolCallStarted):
        function = FunctionCallDelta(name=event.name, arguments="")
        return ToolCallDelta(index=event.index, id=event.id, type="function", function=function)
    return ToolCallDelta(index=event.index, function=FunctionCallDelta(arguments=event.text))


def _message(answer: Answer) -> ChatMessage:
    calls = [
        ToolCallMessage(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
        for call in answer.tool_calls
    ]
    reasoning = answer.reasoning or None
    return unchecked(
        ChatMessage,
        content=answer.content if answer.content or not calls else None,
        reasoning=reasoning,
        reasoning_content=reasoning,
        tool_calls=calls or None,
    )


def _finish(reason: FinishReason, *, called: bool) -> Finish:
    return "tool_calls" if called and reason is FinishReason.STOP else reason.value


def _token_logprob(scored: ScoredToken) -> TokenLogprob:
    return TokenLogprob(
        token=scored.token.decode(errors="replace"),
        logprob=scored.logprob,
        bytes=list(scored.token),
        top_logprobs=[
            TopLogprob(token=token.decode(errors="replace"), logprob=logprob, bytes=list(token))
            for token, logprob in scored.top
        ],
    )
