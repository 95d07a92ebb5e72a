"""The face: engines, their lifecycle, and the OpenAI-style calls."""

from windlass.config import EngineConfig
from windlass.serve.engine import AsyncMLCEngine, MLCEngine

__all__ = ["AsyncMLCEngine", "EngineConfig", "MLCEngine"]
