"""GPTBigCode: SantaCoder and StarCoder (Li et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from windlass.models import gpt2
from windlass.models.config import ConfigReader
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect

_HOW_IT_IS_COMPUTED = (
    "attention_softmax_in_fp32",
    "scale_attention_softmax_in_fp32",
    "inference_runner",
    "validate_runner_input",
    "pre_allocate_kv_cache",
    "pad_key_length",
    "max_batch_size",
)


def define(config: ConfigReader) -> ModelDefinition:
    """GPT-2, all of whose heads share one head of keys and values (Shazeer, 2019)."""
    config.require("multi_query", True, "keys and values of each head are not supported in this architecture")
    for key in _HOW_IT_IS_COMPUTED:
        config.skip(key)
    own = {"activation_function": "gelu_pytorch_tanh", "num_key_value_heads": 1, "conv1d": False}
    return replace(gpt2.define(config.with_defaults(own)), model_type="gpt_bigcode")


def _write_mlc(mlc: dict[str, Any], hf: Mapping[str, Any]) -> None:
    gpt2.write_mlc(mlc, hf)
    mlc["n_inner"] = hf.get("n_inner") or 4 * hf["n_embd"]


FAMILY = Family(
    "gpt_bigcode",
    define,
    GgufDialect("starcoder", tensors=gpt2.GGUF_TENSORS, read=gpt2.read_gguf),
    MlcDialect(
        fields=("n_embd", "n_inner", "n_head", "n_layer", "n_positions", "layer_norm_epsilon"),
        optional=("activation_function", "scale_attn_weights"),
        untied=True,
        read=gpt2.read_mlc,
        write=_write_mlc,
    ),
)
