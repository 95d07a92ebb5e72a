"""Chat objects of a written answer, cut as one likes, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence

from windlass.engine.request import FinishReason
from windlass.protocol.responses import ChatCompletion, ChatCompletionChunk, PromptTokensDetails, Usage
from windlass.serve.call import CallInfo
from windlass.serve.chat_format import ChatFormat
from windlass.serve.mailbox import Piece
from windlass.text.answer import AnswerParser

INFO = CallInfo(
    id="x", model="m", created=0, num_prompt_tokens=20, num_choices=1, choices_per_prompt=1, include_usage=True
)
WEATHER_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def usage_of(texts: Sequence[str]) -> Usage:
    """20 tokens of prompt, 16 of them cached, and one token for each piece of the answer."""
    cached = PromptTokensDetails(cached_tokens=16)
    return Usage(
        prompt_tokens=20, completion_tokens=len(texts), total_tokens=20 + len(texts), prompt_tokens_details=cached
    )


def cut(text: str, size: int) -> list[str]:
    """The text in pieces of ``size`` characters."""
    return [text[i : i + size] for i in range(0, len(text), size)] or [""]


def chunks_of(
    texts: Sequence[str], reason: FinishReason = FinishReason.STOP, stop: str | None = None
) -> list[ChatCompletionChunk]:
    """The chunks of an answer that comes in the pieces ``texts``; the last one has the usage."""
    form = _form()
    chunks = [chunk for piece in _pieces(texts, reason, stop) if (chunk := form.chunk(piece)) is not None]
    return [*chunks, form.usage_chunk(usage_of(texts))]


def whole_of(texts: Sequence[str], reason: FinishReason = FinishReason.STOP, stop: str | None = None) -> ChatCompletion:
    """The same answer as a whole."""
    return _form().response([_pieces(texts, reason, stop)], usage_of(texts))


def _form() -> ChatFormat:
    return ChatFormat(INFO, new_parser=lambda: AnswerParser(tools=True, reasoning=True), with_logprobs=False)


def _pieces(texts: Sequence[str], reason: FinishReason, stop: str | None) -> list[Piece]:
    last = len(texts) - 1
    return [
        Piece(0, text, i + 1, reason if i == last else None, stop_string=stop if i == last else None)
        for i, text in enumerate(texts)
    ]
