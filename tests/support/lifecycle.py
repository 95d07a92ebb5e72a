"""Waiting with a limit, looking at the process, and asking the demo model."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from windlass.serve.engine_base import MLCEngineBase

LIMIT = 20.0
"""Seconds after which a wait counts as a hang."""

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
LONG = "Tell me a story about a fox."


def wait_for(condition: Callable[[], bool], limit: float = LIMIT) -> bool:
    """Return whether ``condition`` became true within ``limit`` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def num_threads() -> int:
    """Threads of this process that the operating system knows, Python's and all others."""
    return len(list(Path("/proc/self/task").iterdir()))


def num_descriptors() -> int:
    """Open file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def mapped_files() -> set[str]:
    """The files that are mapped into this process, compiled modules and libraries left out."""
    fields = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    return {field[5] for field in fields if len(field) == 6 and field[5].startswith("/") and ".so" not in field[5]}


def ask(engine: MLCEngineBase, text: str = QUESTION, **arguments: Any) -> Any:
    """Put one question, greedily; returns what ``create`` does."""
    arguments = {"temperature": 0.0, "max_tokens": 60, **arguments}
    return engine.chat.completions.create(messages=[{"role": "user", "content": text}], **arguments)  # type: ignore[attr-defined]
