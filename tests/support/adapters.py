"""PEFT adapters of random numbers, the same on every machine, and directories made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from support.tiny_models import CASES, F32, tensor_shapes, uniform, write_safetensors
from windlass.demo import model_directory

PREFIX = "base_model.model."
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 4


def demo_config() -> dict[str, Any]:
    """The demo model's config.json."""
    config: dict[str, Any] = json.loads((model_directory() / "config.json").read_text())
    return config


def adapter_tensors(
    config: Mapping[str, Any], *, seed: int, ranks: Mapping[str, int] | None = None, size: float = 0.3
) -> dict[str, F32]:
    """The tensors of an adapter for a model of this configuration.

    ``ranks`` gives the rank of the modules in whose names a key occurs, the first one that does; others have no
    matrices.
    """
    generator = np.random.PCG64(seed)
    tensors: dict[str, F32] = {}
    for name, shape in tensor_shapes(config).items():
        module = name.removesuffix(".weight")
        wanted = ranks or dict.fromkeys(EVERY, RANK)
        rank = next((rank for key, rank in wanted.items() if len(shape) == 2 and key in module), None)
        if rank is None:
            continue
        rows, columns = shape if config["model_type"] != "gpt2" else reversed(shape)
        a = uniform(generator, rank * columns).reshape(rank, columns) / columns**0.5
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.astype(np.float32)
        b = uniform(generator, rows * rank).reshape(rows, rank) * size
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.astype(np.float32)
    return tensors


def write_adapter(
    path: Path, tensors: Mapping[str, F32] | None = None, *, seed: int = 1, dtype: str = "F32", **config: Any
) -> str:
    """Write an adapter, by default one of the demo model; ``config`` changes adapter_config.json."""
    path.mkdir(parents=True, exist_ok=True)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": list(EVERY),
        **config,
    }
    (path / "adapter_config.json").write_text(json.dumps(values))
    if tensors is None:
        tensors = adapter_tensors(demo_config(), seed=seed)
    write_safetensors(path / "adapter_model.safetensors", tensors, dtype=dtype)
    return str(path)


@dataclass(frozen=True)
class AdapterCase:
    """An adapter of a tiny model: what its configuration says, and apart from that which matrices there are."""

    model: str
    seed: int
    config: Mapping[str, Any]
    ranks: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(EVERY, RANK))
    dtype: str = "F32"

    def tensors(self) -> dict[str, F32]:
        """The tensors by their names in the file."""
        return adapter_tensors(CASES[self.model].config, seed=self.seed, ranks=self.ranks)

    def write(self, path: Path) -> str:
        """Write the adapter's directory."""
        return write_adapter(path, self.tensors(), dtype=self.dtype, **self.config)

    def digest(self) -> str:
        """A hash of the model and everything in the adapter."""
        digest = hashlib.sha256(CASES[self.model].digest().encode())
        digest.update(json.dumps([dict(self.config), self.dtype], sort_keys=True).encode())
        for name, array in self.tensors().items():
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()


ADAPTER_CASES = {
    "every": AdapterCase("llama2", 1, {}),
    "patterns": AdapterCase(
        "qwen2",
        2,
        {
            "r": 6,
            "lora_alpha": 10,
            "use_rslora": True,
            "target_modules": r".*\.(?:self_attn\.(q|k)_proj|mlp\.down_[a-z]+)",
            "rank_pattern": {"down_proj": 3, r"model\.layers\.1\..*q_proj": 5},
            "alpha_pattern": {"k_proj": 20, "0.mlp.down_proj": 2.5},
        },
        {"down_proj": 3, "1.self_attn.q_proj": 5, "q_proj": 6, "k_proj": 6},
        "BF16",
    ),
    "layers": AdapterCase(
        "llama3.1-rope",
        3,
        {"target_modules": ["v_proj", "o_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"1.self_attn.v_proj": RANK, "1.self_attn.o_proj": RANK, "1.mlp.up_proj": RANK},
        "F16",
    ),
    "one-layer": AdapterCase(
        "mistral",
        4,
        {"target_modules": ["v_proj", "self_attn.q_proj"], "layers_to_transform": 0},
        {"0.self_attn.v_proj": RANK, "0.self_attn.q_proj": RANK},
    ),
    "excluded": AdapterCase(
        "qwen3",
        5,
        {"target_modules": "all-linear", "exclude_modules": ["gate_proj", "1.self_attn.o_proj"]},
        {"0.self_attn.o_proj": RANK, **{name: RANK for name in EVERY if name not in ("gate_proj", "o_proj")}},
    ),
    "excluded-pattern": AdapterCase(
        "llama-biases",
        6,
        {"exclude_modules": r"(?!.*\.1\.).*_proj|.*\b(k|v|gate)_proj", "init_lora_weights": "gaussian"},
        {
            f"1.{block}.{name}_proj": RANK
            for block, name in (("self_attn", "q"), ("self_attn", "o"), ("mlp", "up"), ("mlp", "down"))
        },
    ),
    "transposed": AdapterCase(
        "gpt2",
        7,
        {"target_modules": ["c_attn", "c_fc", "mlp.c_proj"], "fan_in_fan_out": True},
        dict.fromkeys(("c_attn", "c_fc", "mlp.c_proj"), RANK),
    ),
    "rows-by-head": AdapterCase(
        "gpt-neox",
        8,
        {"target_modules": ["query_key_value", "dense", "dense_4h_to_h"]},
        dict.fromkeys(("query_key_value", "attention.dense", "dense_4h_to_h"), RANK),
    ),
    "rows-in-order": AdapterCase("cohere", 9, {}),
    "fused": AdapterCase(
        "phi3",
        10,
        {"target_modules": "all-linear"},
        dict.fromkeys(("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), RANK),
        "BF16",
    ),
}
"""What adapter_config.json can say of modules, ranks and scales; every format of numbers."""
