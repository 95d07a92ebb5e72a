"""The machine's own limits, and what a model could reach within them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from comparison.shapes import Shape

_SOURCE = Path(__file__).with_name("limits.cpp")
_BATCH_CONTEXT = 48
"""Tokens of context of a sequence in the middle of a batched measurement."""


def build_limits(home: Path) -> Path:
    """Compile the measuring program with ``$CXX`` or ``c++`` unless that was done before.

    Raises:
        OSError, subprocess.CalledProcessError: there is no compiler, or it fails.
    """
    program = home / f"limits-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        home.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CXX", "c++")
        flags = ["-std=c++17", "-O3", "-march=native", "-pthread"]
        subprocess.run([compiler, *flags, str(_SOURCE), "-o", str(program)], check=True, capture_output=True, text=True)
    return program


def measure_limits(program: Path, threads: int) -> dict[str, list[float]]:
    """``read_1``, ``read_N`` (GB/s) and ``int8_1``, ``int8_N`` (Gop/s) with one and with N threads; N is literal."""
    counts = ["1"] if threads == 1 else ["1", str(threads)]
    lines = subprocess.run([str(program), *counts], check=True, capture_output=True, text=True).stdout.splitlines()
    figures = {}
    for line in lines:
        found = json.loads(line)
        names = ("1", "N") if threads == 1 else ("1",) if found["threads"] == 1 else ("N",)
        for name in names:
            figures[f"read_{name}"] = [found["read"]]
            figures[f"int8_{name}"] = [found["int8"]]
    return figures


def limit_of(metric: str, shape: Shape, machine: Mapping[str, float]) -> float | None:
    """The best figure that the machine allows, or None where nothing simple bounds it.

    Decoding reads every weight (at 4.5 bits) and the sequences' KV cache (f16) once per step, and in batches also
    multiplies by every weight once per sequence; prefill multiplies by every weight of the layers once per token.
    Attention's arithmetic and the activations are left out, so nothing can quite reach these limits.

    Args:
        machine: ``read_N`` and ``int8_N``.
    """
    kind, _, number = metric.partition("_")
    if kind == "peak":
        return shape.weight_bytes / 2**20
    read, int8 = machine.get("read_N", 0.0) * 1e9, machine.get("int8_N", 0.0) * 1e9
    if kind == "decode" and read:
        return read / (shape.weight_bytes + shape.kv_bytes(int(number)))
    if kind == "prefill" and int8:
        return int8 / (2 * shape.layer_weights)
    if kind == "batch" and read and int8:
        batch = int(number)
        reading = (shape.weight_bytes + batch * shape.kv_bytes(_BATCH_CONTEXT)) / read
        return batch / max(reading, batch * 2 * (shape.layer_weights + shape.head_weights) / int8)
    return None
