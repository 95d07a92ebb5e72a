"""What all routes of a server share."""

from __future__ import annotations

from dataclasses import dataclass, field

from windlass.server.metrics import HttpMetrics
from windlass.server.served import ServedModels
from windlass.server.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Context:
    """A server's models, settings and counters."""

    served: ServedModels
    settings: ServerSettings
    http_metrics: HttpMetrics = field(default_factory=HttpMetrics)
