"""What all routes of a server share."""

from __future__ import annotations

from dataclasses import dataclass

from windlass.server.served import ServedModels
from windlass.server.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Context:
    """A server's models and settings."""

    served: ServedModels
    settings: ServerSettings
