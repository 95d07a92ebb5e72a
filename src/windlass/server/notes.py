"""What is noted of a request on its way, for the log and the metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

_KEY = "windlass.note"


@dataclass(slots=True)
class RequestNote:
    """One request. Routes add what they know; none of it is content.

    Attributes:
        request_id: the client's own, or made for it; also in the response's headers.
        started: by ``time.perf_counter``.
        model: the name of the model that was asked.
        response_id: of the response object.
        prompt_tokens, completion_tokens: of the answer, as far as it was sent.
        finish_reasons: of the choices that are complete.
        error: the ``code`` of the error that it was answered with, or that its stream ended with.
    """

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    model: str | None = None
    response_id: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reasons: set[str] = field(default_factory=set)
    error: str | None = None

    def attach(self, scope: MutableMapping[str, Any]) -> None:
        """Have ``note_of`` find it."""
        scope[_KEY] = self

    def finished(self, reasons: Iterable[str | None]) -> None:
        """Note why choices ended; those that go on give None."""
        self.finish_reasons.update(reason for reason in reasons if reason)


def note_of(scope: MutableMapping[str, Any]) -> RequestNote:
    """Return the note of the request that an ASGI scope, or a Starlette request, belongs to."""
    if _KEY not in scope:
        # An application without the observer, as it may be mounted elsewhere.
        RequestNote("").attach(scope)
    note: RequestNote = scope[_KEY]
    return note
