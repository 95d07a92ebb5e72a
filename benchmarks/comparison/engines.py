"""The engines that are compared, and where each one's Python and model files are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DRIVERS = Path(__file__).parent / "drivers"
OURS = "windlass"
TIMEOUT = 900.0


class ChildError(Exception):
    """A driver process failed; the message is the end of what it said."""


@dataclass(frozen=True)
class Engine:
    """One column of the table.

    Attributes:
        environment: name of the Python environment it runs in; variants of one engine share it.
        files: what its own model files are called, after the shape's name; empty when it reads the source directory.
        preparing: options for making those files.
        running: options for opening them.
    """

    name: str
    title: str
    environment: str
    files: str = ""
    preparing: Mapping[str, Any] = field(default_factory=dict)
    running: Mapping[str, Any] = field(default_factory=dict)

    @property
    def driver(self) -> Path:
        """The script that runs in the engine's own Python."""
        return DRIVERS / f"{self.environment}_driver.py"

    def model(self, home: Path, shape: str) -> Path:
        """Where its files of a shape are."""
        return home / "models" / f"{shape}-{self.files or 'hf'}"


_OPENVINO_EXPORT = ["--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0"]
_ORT_BUILDER = ["-p", "int4", "--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]

ENGINES = {
    engine.name: engine
    for engine in (
        Engine(OURS, "Windlass", "windlass", running={"quantization": "q4f16_1"}),
        Engine("llamacpp", "llama.cpp Q4_0", "llamacpp", "llamacpp-q4_0.gguf", {"ftype": 2}),
        Engine("openvino", "OpenVINO int4", "openvino", "openvino-int4", {"export": _OPENVINO_EXPORT}),
        Engine(
            "openvino-f32",
            "OpenVINO int4, f32 hint",
            "openvino",
            "openvino-int4",
            {"export": _OPENVINO_EXPORT},
            {"properties": {"INFERENCE_PRECISION_HINT": "f32"}},
        ),
        Engine("ort", "ONNX Runtime int4", "ort", "ort-int4", {"builder": _ORT_BUILDER}),
    )
}


def find_python(engine: Engine, home: Path, given: Mapping[str, Path]) -> Path | None:
    """The Python of an engine's environment: the one given, else ``<home>/venv/<environment>``; ours is this one."""
    if engine.environment in given:
        return given[engine.environment]
    if engine.name == OURS:
        return Path(sys.executable)
    python = home / "venv" / engine.environment / "bin" / "python"
    return python if python.exists() else None


def call_driver(python: Path, engine: Engine, request: Mapping[str, Any], *, threads: int) -> Any:
    """Run one request in a driver process of its own and return its result.

    Raises:
        ChildError: it failed, or took longer than ``TIMEOUT`` seconds.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    # As installed: in a source tree the first start compiles the modules, the others find them compiled.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if engine.name != OURS:
        environment.pop("PYTHONPATH", None)
    command = [str(python), str(engine.driver), json.dumps(request)]
    environment["WINDLASS_BENCH_STARTED"] = repr(time.monotonic())
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"no result after {TIMEOUT:.0f} s") from error
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise ChildError(f"exit status {done.returncode}: {(done.stdout + done.stderr)[-1500:].strip()}")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    processor = ""
    memory = 0.0
    if (path := Path("/proc/cpuinfo")).exists():
        fields = dict(line.split(":", 1) for line in path.read_text().split("\n\n")[0].splitlines() if ":" in line)
        words = {key.strip(): value.strip() for key, value in fields.items()}
        name = words.get("model name", "unknown")
        processor = f"{name}, family {words.get('cpu family', '?')} model {words.get('model', '?')}"
    if (path := Path("/proc/meminfo")).exists():
        memory = int(path.read_text().split()[1]) / 2**20
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": " ".join(os.uname()[::2][:2]),
        "python": sys.version.split()[0],
        "commit": _commit(),
    }


def _commit() -> str:
    git = ["git", "-C", str(DRIVERS), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:
        return "unknown"
