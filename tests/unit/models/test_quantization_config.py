"""``quantization_config``: what is understood, and that everything else is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from windlass.errors import LoadError
from windlass.models.quantization_config import read_quantization
from windlass.weights.quantized import WHOLE, Grouping

FILE = Path("some/config.json")
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}


def words(layout: Any = "pack-quantized", *, group: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    first = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 128, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": {**first, **(group or {})}},
    }


def read(section: Any) -> tuple[Grouping, ...] | None:
    return read_quantization({"quantization_config": section}, FILE)


UNDERSTOOD: list[tuple[dict[str, Any], list[Grouping]]] = [
    (GPTQ, [Grouping("gptq", 4, 128, less_one=True)]),
    ({**GPTQ, "checkpoint_format": "gptq_v2", "group_size": -1}, [Grouping("gptq", 4, WHOLE)]),
    ({**GPTQ, "format": "gptq_v2", "bits": 8}, [Grouping("gptq", 8, 128)]),
    (
        {**GPTQ, "dynamic": {"+:a": {"bits": 8}, "+:b": {"group_size": 32, "sym": False}, "-:c": {}}},
        [Grouping("gptq", bits, size, less_one=True) for bits, size in ((4, 128), (8, 128), (4, 32))],
    ),
    (
        {
            **GPTQ,
            "desc_act": True,
            "static_groups": False,
            "sym": True,
            "damp_percent": 0.01,
            "true_sequential": True,
            "model_name_or_path": "x",
            "meta": {"quantizer": ["gptqmodel:1.0"]},
            "lm_head": False,
            "pack_dtype": "int32",
            "is_marlin_format": False,
            "use_exllama": True,
            "exllama_config": {"version": 1},
        },
        [Grouping("gptq", 4, 128, less_one=True)],
    ),
    (
        {**AWQ, "zero_point": True, "modules_to_not_convert": ["lm_head"], "do_fuse": False, "backend": "autoawq"},
        [Grouping("awq", 4, 128)],
    ),
    ({**AWQ, "version": "GEMM"}, [Grouping("awq", 4, 128)]),
    (words(), [Grouping("words", 4, 128, 1, "weight_scale", zeros=False)]),
    (words(symmetric=False, num_bits=8), [Grouping("words", 8, 128, 1, "weight_scale")]),
    (
        words(strategy="channel", group_size=None, observer="mse", observer_kwargs={}, actorder="static"),
        [Grouping("words", 4, WHOLE, 1, "weight_scale", zeros=False)],
    ),
    (
        words("int-quantized", num_bits=8, strategy="tensor", dynamic=False),
        [Grouping("bytes", 8, WHOLE, WHOLE, "weight_scale", zeros=False)],
    ),
    (
        words("naive-quantized", num_bits=8, type="float", strategy="block", block_structure=[128, 64]),
        [Grouping("fp8", 8, 64, 128, "weight_scale", zeros=False)],
    ),
    (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        [Grouping("fp8", 8, 128, 128, "weight_scale_inv", False)],
    ),
    (
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        [Grouping("fp8", 8, WHOLE, 1, "weight_scale", False)],
    ),
]


@pytest.mark.parametrize(("section", "groupings"), UNDERSTOOD)
def test_what_is_understood(section: dict[str, Any], groupings: list[Grouping]) -> None:
    assert read(section) == tuple(groupings)


def test_no_section_is_no_quantization() -> None:
    assert read_quantization({}, FILE) is None
    assert read(None) is None


REFUSED: list[tuple[Any, str]] = [
    ("gptq", "quantization_config is 'gptq', which must be an object"),
    ({}, "quantization_config.quant_method is 'none'; supported: gptq, awq, compressed-tensors, fp8, fbgemm_fp8"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method is 'bitsandbytes'; supported: gptq, awq"),
    ({"quant_method": ["gptq"]}, "quant_method is ['gptq']; supported"),
    ({**GPTQ, "bits": 3}, "quantization_config.bits is 3; supported: 4, 8"),
    ({**GPTQ, "bits": "4"}, "bits is '4', which must be an integer"),
    ({**GPTQ, "bits": None}, "bits is missing"),
    ({**GPTQ, "group_size": None}, "group_size is missing"),
    ({**GPTQ, "group_size": 0}, "group_size is 0, which must be positive, or -1 for whole rows"),
    ({**GPTQ, "group_size": -2}, "group_size is -2, which must lie in -1 .. "),
    ({**GPTQ, "group_size": 2**40}, "group_size is 1099511627776, which must lie in"),
    ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; supported: gptq, gptq_v2"),
    ({**GPTQ, "is_marlin_format": True}, "is_marlin_format is True: the layout of Marlin"),
    ({**GPTQ, "pack_dtype": "int64"}, "pack_dtype is 'int64'; supported: int32"),
    ({**GPTQ, "rotation": "hadamard"}, "unknown keys: quantization_config.rotation; "),
    ({**GPTQ, "dynamic": [1]}, "dynamic is [1], which must be an object"),
    ({**GPTQ, "dynamic": {"+:a": {"bits": 2}}}, "dynamic.+:a.bits is 2; supported: 4, 8"),
    ({**GPTQ, "dynamic": {"+:a": {"adapter": {"rank": 8}}}}, "unknown keys: quantization_config.dynamic.+:a.adapter"),
    ({**GPTQ, "dynamic": {f"+:{i}": {"group_size": i} for i in range(1, 40)}}, "is gptq in 40 ways; at most 32"),
    ({**AWQ, "bits": 8}, "bits is 8; supported for awq: 4"),
    ({**AWQ, "version": "gemv"}, "version is 'gemv'; supported: gemm"),
    ({**AWQ, "format": "gemv_fast"}, "format is 'gemv_fast'; supported: gemm"),
    (words("marlin-24"), "quantization_config.format is 'marlin-24'; supported: pack-quantized, int-quantized"),
    (words(None), "format is 'none'; supported: "),
    (words(num_bits=2), "config_groups.group_0.weights.num_bits is 2; supported: 4, 8"),
    (words(strategy="tensor_group"), "strategy is 'tensor_group'; supported: tensor, channel, group, block"),
    (words(strategy="block", block_structure=[1, 2]), "strategy is block; supported for int"),
    (words("float-quantized"), "type is int, which float-quantized cannot be"),
    (words(type="float", num_bits=8), "type is float, which pack-quantized cannot be"),
    (words("float-quantized", type="float"), "num_bits and symmetric of floats must be 8 and true"),
    (words("float-quantized", type="float", num_bits=8, strategy="block"), "block_structure is missing"),
    (words("float-quantized", type="float", num_bits=8, strategy="block", block_structure=[1.5, 2]), "two integers"),
    (words("float-quantized", type="float", num_bits=8, strategy="block", block_structure=[1]), "a list of 2 numbers"),
    (words(strategy="group", group_size=None), "group_size is missing"),
    (words(symmetric="yes"), "symmetric is 'yes', which must be true or false"),
    (words(dynamic=True), "dynamic is True: weights are quantized once"),
    (words(scheme="W4A16"), "unknown keys: quantization_config.config_groups.group_0.weights.scheme"),
    (words(group={"weights": None}), "config_groups.group_0 has no weights"),
    (words(group={"output_activations": {"num_bits": 8}}), "output_activations is there"),
    (words(group={"input_activations": 8}), "input_activations is 8, which must be an object"),
    (words("mixed-precision"), "config_groups.group_0.format is 'none'; supported: pack-quantized"),
    ({**words(), "config_groups": {}}, "config_groups is missing or empty"),
    ({**words(), "config_groups": {"W4A16": ["Linear"]}}, "config_groups.W4A16 is ['Linear'], which must be an object"),
    ({**words(), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config.format is 'sparse-24-bitmask'"),
    ({**words(), "transform_config": {"config_groups": {"R1": {}}}}, "unknown keys: quantization_config.transform_"),
    ({**words(), "quantization_status": "calibration"}, "quantization_status is 'calibration'"),
    ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt is 'e5m2'; supported: e4m3"),
    ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size is [128], which must be a list of 2"),
    ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "weight_block_size is [0, 128]"),
    ({"quant_method": "fp8", "expert_dtype": "fp4"}, "expert_dtype is 'fp4'; supported: fp8"),
]


@pytest.mark.parametrize(("section", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_refused(section: Any, message: str) -> None:
    with pytest.raises(LoadError) as caught:
        read(section)
    assert caught.value.path == "some/config.json"
    assert message in caught.value.reason
