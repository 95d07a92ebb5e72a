"""gpt-oss and DeepSeek-V3 as they were released: experts in MXFP4, matrices in FP8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.quantized_files import fp8, mxfp4
from support.tiny_models import CASES, TinyModel, program_weights
from support.weight_files import write_safetensors
from windlass.errors import LoadError
from windlass.models.quantization_config import read_quantization
from windlass.models.registry import define_model
from windlass.quantization import Format, Tensor
from windlass.weights.loader import load_weights
from windlass.weights.safetensors import open_safetensors

FLOATS = TinyModel("gpt_oss", {**CASES["gpt_oss"].config, "intermediate_size": 64}, seed=4)
CONFIG = {
    **FLOATS.config,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
}


def checkpoint() -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float32]]]:
    """The stored tensors, and the same model in floats."""
    rng = np.random.default_rng(1)
    stored: dict[str, NDArray[Any]] = {}
    floats = FLOATS.weights()
    for name, array in list(floats.items()):
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = array.shape
            matrix = mxfp4(rng, experts, rows, columns)
            stored |= {f"{name}_{piece}": data for piece, data in matrix.pieces.items()}
            floats[name] = np.ascontiguousarray(matrix.numbers.swapaxes(1, 2))
        else:
            stored[name] = array
    return stored, floats


def load(directory: Path, stored: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
    def bytes_are_integers(header: dict[str, Any]) -> None:
        for name, entry in header.items():
            if name.endswith(("_blocks", "_scales")):
                entry["dtype"] = "U8"

    write_safetensors(directory / "model.safetensors", stored, header_edit=bytes_are_integers)
    file = directory / "config.json"
    definition = define_model("gpt_oss", CONFIG, file, dialect="hf")
    with open_safetensors(directory, read_quantization(CONFIG, file)) as source:
        return dict(load_weights(definition.program.weights, source))


def test_the_numbers_are_those_of_the_format(tmp_path: Path) -> None:
    stored, floats = checkpoint()
    definition = define_model("gpt_oss", FLOATS.config, Path("config.json"), dialect="hf")
    expected = program_weights(definition.program, floats)
    weights = load(tmp_path, stored)
    assert weights["model.layers.0.mlp.experts.down_proj"].format is Format.INT8
    for name, tensor in expected.items():
        np.testing.assert_array_equal(weights[name].dequantize(), tensor.data, err_msg=name)


GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"
DAMAGED: dict[str, tuple[Callable[[dict[str, NDArray[Any]]], object], str]] = {
    "no scales": (lambda stored: stored.pop(f"{GATE_UP}_scales"), "'.*gate_up_proj_scales' is missing"),
    "a scale less": (
        lambda stored: stored.update({f"{GATE_UP}_scales": stored[f"{GATE_UP}_scales"][:, :, :1]}),
        r"gate_up_proj_scales' has shape \[5, 128, 1\]",
    ),
    "other blocks": (
        lambda stored: stored.update({f"{GATE_UP}_blocks": stored[f"{GATE_UP}_blocks"][..., :8]}),
        r"must be uint8 \[experts, rows, blocks, 16\], not uint8 \[5, 128, 2, 8\]",
    ),
    "an expert less": (
        lambda stored: stored.update(
            {f"{GATE_UP}_{part}": stored[f"{GATE_UP}_{part}"][:4] for part in ("blocks", "scales")}
        ),
        r"gate_up_proj' has shape \[512, 64\]",
    ),
    "not a number": (lambda stored: stored[f"{GATE_UP}_scales"].fill(255), "gate_up_proj: a number is not finite"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    change, message = DAMAGED[name]
    stored, _ = checkpoint()
    change(stored)
    with pytest.raises(LoadError, match=message):
        load(tmp_path, stored)


def test_mxfp4_is_for_gpt_oss_only() -> None:
    config = {**CASES["mixtral"].config, "quantization_config": {"quant_method": "mxfp4"}}
    with pytest.raises(LoadError, match="unknown keys: quantization_config"):
        define_model("mixtral", config, Path("config.json"), dialect="hf")


def test_deepseek_in_fp8_has_the_numbers_of_the_format(tmp_path: Path) -> None:
    """What makes keys of the latent vector is transposed, and so float32; all else stays as it is."""
    case = CASES["deepseek_v3"]
    rng = np.random.default_rng(2)
    stored: dict[str, NDArray[Any]] = {}
    floats = case.weights()
    for name, array in list(floats.items()):
        stored[name] = array
        if "_proj" in name:
            matrix = fp8(rng, *array.shape, block=(128, 128), scale="weight_scale_inv")
            stored |= {f"{name.removesuffix('.weight')}.{piece}": data for piece, data in matrix.pieces.items()}
            floats[name] = matrix.numbers
    config = {**case.config, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    file = tmp_path / "config.json"
    definition = define_model("deepseek_v3", config, file, dialect="hf")
    write_safetensors(tmp_path / "model.safetensors", stored)
    with open_safetensors(tmp_path, read_quantization(config, file)) as source:
        weights = dict(load_weights(definition.program.weights, source, ignored=definition.ignored_tensors))
    for name, tensor in program_weights(definition.program, floats).items():
        np.testing.assert_array_equal(weights[name].dequantize(), tensor.data, err_msg=name)
    formats = {name.rpartition("self_attn.")[2]: tensor.format for name, tensor in weights.items()}
    assert (formats["w_uk"], formats["w_uv"], formats["kv_a_proj_with_mqa.weight"]) == (
        Format.F32,
        Format.FP8,
        Format.FP8,
    )
