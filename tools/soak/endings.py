"""What a right answer looks like, and that it ends exactly once. A check returns the text, or raises an error."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from soak.wire import Reply

TERMINAL_RESPONSES = ("response.completed", "response.incomplete", "response.failed")


class WrongAnswerError(Exception):
    """The server broke a promise."""


class ErrorEventError(Exception):
    """A stream that ended properly with an error event; the message is its code."""


class RefusedError(Exception):
    """A proper refusal; the message is its status and code."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{status} {code}")
        self.status = status


def check_refusal(reply: Reply) -> None:
    """Raise ``RefusedError`` for a status other than 200 with OpenAI's or Anthropic's error body."""
    if reply.status == 200:
        return
    body = reply.json()
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not error.get("message") or not error.get("type"):
        raise WrongAnswerError(f"status {reply.status} with the body {reply.body[:200]!r}")
    if reply.status in (429, 503) and not reply.headers.get("retry-after", "").isdigit():
        raise WrongAnswerError(f"status {reply.status} without Retry-After")
    raise RefusedError(reply.status, str(error.get("code") or error["type"]))


def _events(reply: Reply) -> list[dict[str, Any]]:
    """The chunks, after the checks that all streams have in common."""
    check_refusal(reply)
    if not reply.is_stream:
        raise WrongAnswerError(f"no stream but {reply.headers.get('content-type')}")
    found = []
    for place, (_, data) in enumerate(reply.events):
        if data == "[DONE]":
            if place != len(reply.events) - 1:
                raise WrongAnswerError("an event after [DONE]")
            continue
        chunk = json.loads(data)
        if chunk.get("error"):
            if place != len(reply.events) - 1:
                raise WrongAnswerError("an event after the error event")
            raise ErrorEventError(str(chunk["error"].get("code") or chunk["error"].get("type")))
        found.append(chunk)
    if not reply.whole:
        raise WrongAnswerError(f"cut after {len(reply.events)} events, the last of which is {reply.events[-1:]}")
    return found


def chat_stream(reply: Reply, n: int = 1) -> str:
    """Chat or text completion: one finish reason per choice, nothing of the choice after it, ``[DONE]`` at the end."""
    chunks = _events(reply)
    if reply.events[-1][1] != "[DONE]":
        raise WrongAnswerError("a stream without [DONE]")
    texts, reasons = dict.fromkeys(range(n), ""), Counter()
    for chunk in chunks:
        for choice in chunk["choices"]:
            index = choice["index"]
            if reasons[index] or index not in texts:
                raise WrongAnswerError(f"a chunk of choice {index}, which has ended or was not asked for")
            texts[index] += choice.get("text") or choice.get("delta", {}).get("content") or ""
            reasons[index] += choice["finish_reason"] is not None
    if reasons != Counter(range(n)):
        raise WrongAnswerError(f"finish reasons by choice: {dict(reasons)}")
    return "\0".join(texts.values())


def chat_whole(reply: Reply, n: int = 1) -> str:
    check_refusal(reply)
    choices = (reply.json() or {}).get("choices", [])
    if [choice["index"] for choice in choices] != list(range(n)) or not all(c["finish_reason"] for c in choices):
        raise WrongAnswerError(f"choices {choices}")
    return "\0".join(choice.get("text") or choice.get("message", {}).get("content") or "" for choice in choices)


def responses_stream(reply: Reply, _n: int = 1) -> str:
    """Numbered without gaps, opened with ``response.created``, and ended by exactly one terminal event."""
    chunks = [chunk for chunk in _events(reply) if chunk["type"] != "keepalive"]
    kinds = [chunk["type"] for chunk in chunks]
    numbers = [chunk["sequence_number"] for chunk in chunks]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or kinds[0] != "response.created":
        raise WrongAnswerError(f"events {list(zip(numbers, kinds, strict=True))}")
    if [kind for kind in kinds if kind in TERMINAL_RESPONSES] != kinds[-1:]:
        raise WrongAnswerError(f"the endings of {kinds}")
    return "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "response.output_text.delta")


def responses_whole(reply: Reply, _n: int = 1) -> str:
    check_refusal(reply)
    body = reply.json() or {}
    if body.get("status") not in ("completed", "incomplete"):
        raise WrongAnswerError(f"the response {body}")
    parts = [part for item in body["output"] for part in item.get("content", ())]
    return "".join(part.get("text", "") for part in parts)


def messages_stream(reply: Reply, _n: int = 1) -> str:
    """Anthropic's order: ``message_start`` first, ``message_stop`` once and last, every block stopped."""
    chunks = [chunk for chunk in _events(reply) if chunk["type"] != "ping"]
    kinds = [chunk["type"] for chunk in chunks]
    if [name for name, _ in reply.events if name != "ping"] != kinds:
        raise WrongAnswerError("an event's name is not its type")
    counts = Counter(kinds)
    once = counts["message_start"] == counts["message_stop"] == 1 and (kinds[0], kinds[-1]) == (
        "message_start",
        "message_stop",
    )
    if not once or counts["content_block_start"] != counts["content_block_stop"]:
        raise WrongAnswerError(f"events {kinds}")
    reasons = [chunk["delta"].get("stop_reason") for chunk in chunks if chunk["type"] == "message_delta"]
    if not any(reasons):
        raise WrongAnswerError("no stop reason")
    deltas = [chunk["delta"] for chunk in chunks if chunk["type"] == "content_block_delta"]
    return "".join(delta.get("text", "") for delta in deltas)


def messages_whole(reply: Reply, _n: int = 1) -> str:
    check_refusal(reply)
    body = reply.json() or {}
    if body.get("type") != "message" or not body.get("stop_reason"):
        raise WrongAnswerError(f"the message {body}")
    return "".join(part.get("text", "") for part in body["content"])


def plain_json(reply: Reply, _n: int = 1) -> str:
    """Any other route: JSON."""
    check_refusal(reply)
    if reply.json() is None or not reply.whole:
        raise WrongAnswerError(f"the body {reply.body[:200]!r}")
    return reply.body.decode()
