"""Code written for MLC-LLM, unchanged."""

from __future__ import annotations

import sys
from types import ModuleType

import windlass.serve.engine
from windlass.config import EngineConfig


def install_as_mlc_llm() -> None:
    """Make ``import mlc_llm`` and ``from mlc_llm.serve import MLCEngine`` give Windlass's engines.

    Idempotent. Raises ``RuntimeError`` when the real ``mlc_llm`` is already imported: two packages under one name would
    confuse everybody.
    """
    present = sys.modules.get("mlc_llm")
    if present is not None and not hasattr(present, "_windlass"):
        raise RuntimeError("the real mlc_llm is already imported; call windlass.install_as_mlc_llm() before it")
    package, serve = ModuleType("mlc_llm"), ModuleType("mlc_llm.serve")
    exports = {
        "MLCEngine": windlass.serve.engine.MLCEngine,
        "AsyncMLCEngine": windlass.serve.engine.AsyncMLCEngine,
    }
    for module in (package, serve):
        module.__doc__ = "Windlass in the place of MLC-LLM; see windlass.install_as_mlc_llm."
        module.__dict__.update(exports)
    serve.__dict__["EngineConfig"] = EngineConfig
    package.__dict__.update(_windlass=True, serve=serve, __path__=[])
    sys.modules["mlc_llm"], sys.modules["mlc_llm.serve"] = package, serve
