"""A stand-in for ``MLCEngine`` with scripted answers, for tests of what only talks to an engine."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

from windlass.errors import RequestAbortedError

HANG = object()
"""In a scripted answer: a token that never comes; only an abort ends the wait."""

CTRL_C = object()
"""In a scripted answer: the user presses Ctrl-C, and the token never comes."""

EARLY_CTRL_C = object()
"""At the beginning of a scripted answer: the user presses Ctrl-C before the engine knows the request."""


class FakeStream:
    """Chunks shaped as OpenAI's; the last two carry the finish reason and the usage."""

    def __init__(self, pieces: list[Any], reason: str) -> None:
        self.closed = False
        # A queue and not an event: the signal handler that aborts may interrupt the wait while it holds a lock.
        self.aborted: SimpleQueue[None] = SimpleQueue()
        self._chunks = self._generate(pieces, reason)

    def __iter__(self) -> Iterator[Any]:
        return self._chunks

    def close(self) -> None:
        self.closed = True

    def _generate(self, pieces: list[Any], reason: str) -> Iterator[Any]:
        for piece in pieces:
            if piece is HANG or piece is CTRL_C:
                if piece is CTRL_C:
                    signal.raise_signal(signal.SIGINT)
                self.aborted.get(timeout=60)
                raise RequestAbortedError("aborted")
            elif isinstance(piece, BaseException):
                raise piece
            else:
                yield _chunk(piece, None)
        yield _chunk(None, reason)
        usage = SimpleNamespace(prompt_tokens=10, completion_tokens=len(pieces), total_tokens=10 + len(pieces))
        yield SimpleNamespace(choices=[], usage=usage)


def _chunk(content: str | None, reason: str | None) -> Any:
    choice = SimpleNamespace(delta=SimpleNamespace(content=content), finish_reason=reason)
    return SimpleNamespace(choices=[choice], usage=None)


class FakeEngine:
    """Gives ``answers`` one after the other: lists of pieces for a stream, or an exception that ``create`` raises.

    Call it like ``MLCEngine`` to "construct" it. ``built`` is what it was constructed with, ``calls`` the arguments of
    each ``create``, ``streams`` what they returned, ``exits`` the exception type of each end of a ``with`` block.
    """

    def __init__(self, *answers: Any, reason: str = "stop") -> None:
        self.answers = list(answers)
        self.reason = reason
        self.built: dict[str, Any] = {}
        self.calls: list[dict[str, Any]] = []
        self.streams: list[FakeStream] = []
        self._known: dict[str, FakeStream] = {}
        self.exits: list[type[BaseException] | None] = []
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))

    def __call__(self, model: str | None = None, device: str = "auto", **named: Any) -> FakeEngine:
        self.built = {"model": model, "device": device, **named}
        return self

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.exits.append(kind)

    def abort(self, request_id: str) -> None:
        """End the stream of the call of that id; unknown ids are ignored."""
        if request_id in self._known:
            self._known[request_id].aborted.put(None)

    def _create(self, **arguments: Any) -> FakeStream:
        self.calls.append(arguments)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        early = answer[0] is EARLY_CTRL_C
        if early:
            signal.raise_signal(signal.SIGINT)
        stream = FakeStream(answer[early:], self.reason)
        self.streams.append(stream)
        self._known[arguments["request_id"]] = stream
        return stream
