"""PEFT adapters of random numbers, as directories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support.tiny_models import F32, tensor_shapes, write_safetensors
from windlass.demo import model_directory

PREFIX = "base_model.model."
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def demo_config() -> dict[str, Any]:
    """The demo model's config.json."""
    config: dict[str, Any] = json.loads((model_directory() / "config.json").read_text())
    return config


def adapter_tensors(
    config: Mapping[str, Any], *, seed: int, rank: int = 4, targets: Sequence[str] = EVERY, size: float = 0.3
) -> dict[str, F32]:
    """The tensors of an adapter for every module whose name ends as one of ``targets``."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, F32] = {}
    for name, shape in tensor_shapes(config).items():
        module = name.removesuffix(".weight")
        if len(shape) != 2 or module.rpartition(".")[2] not in targets:
            continue
        rows, columns = shape
        a = rng.standard_normal((rank, columns)) / columns**0.5
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = (size * rng.standard_normal((rows, rank))).astype(np.float32)
    return tensors


def write_adapter(
    path: Path, tensors: Mapping[str, F32] | None = None, *, seed: int = 1, dtype: str = "F32", **config: Any
) -> str:
    """Write an adapter, by default of the demo model with rank 4; ``config`` changes adapter_config.json."""
    path.mkdir(parents=True, exist_ok=True)
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": list(EVERY)}
    values.update(config)
    (path / "adapter_config.json").write_text(json.dumps(values))
    if tensors is None:
        tensors = adapter_tensors(demo_config(), seed=seed)
    write_safetensors(path / "adapter_model.safetensors", tensors, dtype=dtype)
    return str(path)
