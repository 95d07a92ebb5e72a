"""Which tiny models are tried in which form: what the tests run on, and docs/models.md is held to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from support.tiny_dense import DENSE_CONFIGS
from support.tiny_layer_norm import LAYER_NORM_CONFIGS
from support.tiny_models import CASES
from support.tiny_moe import MOE_CONFIGS
from windlass.models.registry import FAMILIES


def _in_gguf(configs: Iterable[tuple[str, dict[str, Any], int]]) -> tuple[str, ...]:
    return tuple(name for name, config, _ in configs if FAMILIES[config["model_type"]].gguf)


PLAIN_GGUF = ("llama2", "llama3-tied", "qwen2", "qwen3")
DENSE_GGUF = _in_gguf(DENSE_CONFIGS)
LAYER_NORM_GGUF = _in_gguf(LAYER_NORM_CONFIGS)
MIXTURE_GGUF = _in_gguf(MOE_CONFIGS)
"""Written as GGUF files by ``gguf_files``, ``gguf_dense``, ``gguf_layer_norm`` and ``gguf_moe``."""

CONVERTED_MLC = tuple(name for name, case in CASES.items() if FAMILIES[case.config["model_type"]].mlc)
"""Converted to MLC directories and read again."""

MIXTURE_MLC = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2_lite", "deepseek_v3")
"""Written as MLC directories with the names and the order of rows of MLC LLM itself."""
