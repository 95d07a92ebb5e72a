"""Windlass: an LLM inference engine for Python.

from windlass import MLCEngine

with MLCEngine() as engine:
    answer = engine.chat.completions.create(messages=[{"role": "user", "content": "Hello!"}])
    print(answer.choices[0].message.content)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from windlass.errors import (
    ContextLengthError,
    DownloadError,
    EngineError,
    EngineFailedError,
    EngineForkedError,
    EngineOverloadedError,
    EngineTerminatedError,
    EngineUnloadedError,
    InvalidRequestError,
    LoadError,
    RequestAbortedError,
    RequestError,
    RequestTimeoutError,
    WindlassError,
)

if TYPE_CHECKING:
    from windlass.config import EngineConfig
    from windlass.serve.compat import install_as_mlc_llm
    from windlass.serve.engine import AsyncMLCEngine, MLCEngine

__version__ = "0.1.0"

__all__ = [
    "AsyncMLCEngine",
    "ContextLengthError",
    "DownloadError",
    "EngineConfig",
    "EngineError",
    "EngineFailedError",
    "EngineForkedError",
    "EngineOverloadedError",
    "EngineTerminatedError",
    "EngineUnloadedError",
    "InvalidRequestError",
    "LoadError",
    "MLCEngine",
    "RequestAbortedError",
    "RequestError",
    "RequestTimeoutError",
    "WindlassError",
    "__version__",
    "install_as_mlc_llm",
]

_LAZY = {
    "AsyncMLCEngine": "windlass.serve.engine",
    "EngineConfig": "windlass.config",
    "MLCEngine": "windlass.serve.engine",
    "install_as_mlc_llm": "windlass.serve.compat",
}


def __getattr__(name: str) -> Any:
    """Import the engines when they are first asked for: plain ``import windlass`` stays fast."""
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
