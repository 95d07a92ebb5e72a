"""GGUF files that llama.cpp has answered (``tools/make_llama_cpp_goldens.py``): all families, all types of block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from support.gguf_dense import write_dense_gguf
from support.gguf_files import BLOCK_TYPES, random_blocks, write_gguf
from support.gguf_layer_norm import write_layer_norm_gguf
from support.gguf_moe import rope_factors, write_moe_gguf
from support.tiny_dense import DENSE_CONFIGS
from support.tiny_layer_norm import LAYER_NORM_CONFIGS
from support.tiny_models import CASES, TinyModel, tensor_shapes
from support.tiny_moe import MOE_CONFIGS
from windlass.quantization.ggml import GGML_TYPES

PROMPT = np.random.default_rng(3).integers(3, 300, 60).tolist()
NUM_TOKENS = 24
ROWS = (7, 59, 82)
"""Positions whose logits are kept: in the prompt, its last one, and the last of all."""

_CHANGES = {
    "cohere-qk-norm": None,  # it looks for these norms in models of 64 layers and more
    "deepseek_v2": {"topk_method": "greedy", "n_group": 1, "topk_group": 1},  # it chooses groups as V3 does
    "deepseek_v2_lite": {"num_hidden_layers": 27},  # it knows these by their 27 layers
    "exaone4": {"head_dim": 16, "sliding_window": None, "layer_types": ["full_attention"] * 4},  # windows: at 64 layers
    "gpt_oss": {"rope_scaling": {}},  # it rounds where YaRN begins and ends, which these models do not
    # It takes the usual factor for the scores, and the usual end of the blend, for these models.
    "olmo3": {"rope_scaling": {**CASES["olmo3"].config["rope_scaling"], "attention_factor": None, "beta_slow": 1.0}},
    "olmoe": {"num_key_value_heads": 4},  # it knows no others
    "phi3": {"sliding_window": None},  # it passes over the window
    "phi3-short": {"sliding_window": None},
    "qwen2_moe": {"decoder_sparse_step": 1, "mlp_only_layers": []},  # it knows no layers without experts
    "qwen3_moe": {"decoder_sparse_step": 1, "mlp_only_layers": []},
}
"""Where llama.cpp does not do what the model asks for: what is asked of both instead, or None to ask for nothing."""

_PLAIN = ("llama2", "llama3-tied", "llama-biases", "qwen2", "qwen3")
_BLOCKS = {**CASES["llama2"].config, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}


def _model(name: str) -> TinyModel:
    """The model of that name, such as llama.cpp can run it."""
    model = CASES[name]
    return replace(model, config={**model.config, **(_CHANGES.get(name) or {})})


def _write_plain(model: TinyModel, path: Path) -> Path:
    return write_gguf(path, model.config, model.weights())


def _write_mixture(model: TinyModel, path: Path) -> Path:
    return write_moe_gguf(path, model.config, model.weights(), rope_factors=rope_factors(model.config))


def _write_blocks(number: int, path: Path) -> Path:
    """A Llama all of whose matrices are blocks of one type."""
    rng = np.random.default_rng(number)
    shapes = tensor_shapes(_BLOCKS)
    tensors = {
        name: random_blocks(number, *shape, rng) if len(shape) == 2 else np.ones(shape, dtype=np.float32)
        for name, shape in shapes.items()
    }
    types = {name: number for name, shape in shapes.items() if len(shape) == 2}
    return write_gguf(path, _BLOCKS, tensors, types)


_ALL_FAMILIES: dict[str, Callable[[Path], Path]] = {
    **{name: partial(_write_plain, _model(name)) for name in _PLAIN},
    **{name: lambda path, name=name: write_dense_gguf(path, _model(name)) for name, _, _ in DENSE_CONFIGS},
    **{name: lambda path, name=name: write_layer_norm_gguf(path, _model(name)) for name, _, _ in LAYER_NORM_CONFIGS},
    **{name: partial(_write_mixture, _model(name)) for name, _, _ in MOE_CONFIGS},
}
FAMILY_FILES = {name: write for name, write in _ALL_FAMILIES.items() if _CHANGES.get(name, {}) is not None}
BLOCK_FILES: dict[str, Callable[[Path], Path]] = {
    f"block-{GGML_TYPES[number].name}": partial(_write_blocks, number) for number in BLOCK_TYPES
}
FILES = {**FAMILY_FILES, **BLOCK_FILES}
