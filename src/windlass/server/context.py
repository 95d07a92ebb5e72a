"""What all routes of a server share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from windlass.server.bodies import read_json
from windlass.server.metrics import HttpMetrics
from windlass.server.notes import note_of
from windlass.server.served import Choice, ServedModels
from windlass.server.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Context:
    """A server's models, settings and counters."""

    served: ServedModels
    settings: ServerSettings
    http_metrics: HttpMetrics = field(default_factory=HttpMetrics)

    async def read(self, request: Request) -> tuple[dict[str, Any], Choice]:
        """Return the body of a request and the model that it names, which is noted; with an adapter if it names one.

        Raises:
            ApiError: the body is no JSON object or too large, or there is no such model.
            ClientGone: the client left before it was there.
        """
        body = await read_json(request)
        choice = self.served.choose(body.get("model"), body.get("lora"))
        note_of(request.scope).model = choice.name
        return body, choice
