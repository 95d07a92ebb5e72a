"""Quantized Hugging Face checkpoints: whole models give what the same numbers give as floats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from support.prompt_logits import prompt_logits
from support.quantized_files import Matrix, awq, compressed, fp8, gptq, groups_of, write_checkpoint
from support.tiny_models import CASES, TinyModel
from windlass import LoadError, MLCEngine

F32 = NDArray[np.float32]
PROMPT = [3, 17, 29, 5, 200, 31, 8, 150, 77, 42, 11, 100, 6, 9, 250, 33, 12, 180]
WIDE = TinyModel(
    "wide",
    {
        **CASES["llama2"].config,
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    seed=9,
)
INPUTS = {"q": "x", "k": "x", "v": "x", "o": "heads", "gate": "h", "up": "h", "down": "inner"}
"""What each projection multiplies: those of the same input have the same order of columns."""


def logits(path: Path, executor: Literal["native", "reference"] = "native") -> Any:
    """Of all positions of the prompt."""
    return prompt_logits(path, PROMPT, executor)


def deviation(values: F32, expected: F32) -> float:
    """The root mean square of the differences, as a part of that of ``expected``."""
    return float(np.sqrt(np.square(values - expected).mean() / np.square(expected).mean()))


def projection(name: str) -> str:
    return name.rpartition(".")[2].removesuffix("_proj")


def order(name: str, columns: int, by: Callable[[str], str] = lambda name: INPUTS[projection(name)]) -> Any:
    """The groups of 32 columns of a projection, in an order that its input has."""
    return groups_of(columns, 32, np.random.default_rng(sum(by(name).encode())))


def compressed_config(layout: str = "pack-quantized", activations: Any = None, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "input_activations": activations, "output_activations": None, "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*v_proj"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "global_compression_ratio": 1.5,
    }


GPTQ = {"quant_method": "gptq", "group_size": 32, "desc_act": False, "sym": True, "damp_percent": 0.1, "lm_head": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
TOKENS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
Maker = Callable[[np.random.Generator, str, int, int], "Matrix | None"]

MODELS: dict[str, tuple[dict[str, Any], Maker, float]] = {
    "gptq-4": ({**GPTQ, "bits": 4}, lambda rng, _, n, k: gptq(rng, n, k), 0.04),
    "gptq-8-asym": ({**GPTQ, "bits": 8, "sym": False}, lambda rng, _, n, k: gptq(rng, n, k, bits=8, sym=False), 0.004),
    "gptq-4-act-order": (
        {**GPTQ, "bits": 4, "desc_act": True},
        lambda rng, name, n, k: gptq(rng, n, k, sym=False, order=order(name, k)),
        0.04,
    ),
    "gptq-8-act-order": (
        {**GPTQ, "bits": 8, "desc_act": True},
        lambda rng, name, n, k: gptq(rng, n, k, bits=8, order=order(name, k)),
        0.004,
    ),
    # Orders that differ within what is computed as one: those matrices become floats.
    "gptq-4-many-orders": (
        {**GPTQ, "bits": 4, "desc_act": True},
        lambda rng, name, n, k: gptq(rng, n, k, order=order(name, k, by=projection)),
        0.04,
    ),
    "gptq-4-and-8": (
        {**GPTQ, "bits": 4, "dynamic": {"+:.*(v|gate)_proj": {"bits": 8}}},
        lambda rng, name, n, k: gptq(rng, n, k, bits=8 if projection(name) in ("v", "gate") else 4),
        0.04,
    ),
    "awq": (AWQ, lambda rng, _, n, k: awq(rng, n, k, group=64), 0.04),
    "awq-without-some": (
        {**AWQ, "modules_to_not_convert": ["v_proj"]},
        lambda rng, name, n, k: None if projection(name) == "v" else awq(rng, n, k, group=64),
        0.04,
    ),
    "words-4": (
        compressed_config(num_bits=4, type="int", symmetric=False, strategy="group", group_size=128),
        lambda rng, name, n, k: None if projection(name) == "v" else compressed(rng, n, k, group=128, sym=False),
        0.04,
    ),
    "bytes-8": (
        compressed_config("int-quantized", TOKENS, num_bits=8, type="int", symmetric=True, strategy="channel"),
        lambda rng, _, n, k: compressed(rng, n, k, bits=8, group=-1, layout="int-quantized"),
        0.004,
    ),
    "float-channels": (
        compressed_config("float-quantized", TOKENS, num_bits=8, type="float", symmetric=True, strategy="channel"),
        lambda rng, _, n, k: fp8(rng, n, k, block=(1, -1), scales="bf16"),
        2e-6,
    ),
    "float-tensors": (
        compressed_config("float-quantized", TOKENS, num_bits=8, type="float", symmetric=True, strategy="tensor"),
        lambda rng, name, n, k: None if projection(name) == "v" else fp8(rng, n, k, block=None),
        2e-6,
    ),
    "float-blocks": (
        {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        lambda rng, _, n, k: fp8(rng, n, k, block=(128, 128), scale="weight_scale_inv"),
        2e-6,
    ),
}


def written(
    directory: Path, model: TinyModel, config: dict[str, Any], maker: Maker, **options: Any
) -> tuple[Path, Path]:
    """The directories of a checkpoint and of one of the same numbers as floats."""
    paths = directory / "quantized", directory / "floats"
    for path, quantization in zip(paths, (config, None), strict=True):
        path.mkdir()
        rng = np.random.default_rng(4)

        def quantized(stem: str, rows: int, columns: int) -> Matrix | None:
            return maker(rng, stem, rows, columns)  # noqa: B023

        write_checkpoint(path, model, quantization, quantized, **(options if quantization else {}))
    return paths


def mixed(rng: np.random.Generator, name: str, rows: int, columns: int) -> Matrix | None:
    """Act-order, each expert with one of its own; routers stay as they are."""
    if name.endswith("gate"):
        return None
    return gptq(rng, rows, columns, order=order(name, columns, by=str))


FAMILIES: dict[str, tuple[dict[str, Any], Maker]] = {
    "mixtral": ({**GPTQ, "bits": 4, "desc_act": True}, mixed),
    "deepseek_v3": (
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        lambda rng, name, n, k: (
            None if name.endswith("gate") else fp8(rng, n, k, block=(128, 128), scale="weight_scale_inv")
        ),
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_and_compressed_attention_may_be_quantized(tmp_path: Path, name: str) -> None:
    config, maker = FAMILIES[name]
    quantized, floats = written(tmp_path, CASES[name], config, maker)
    expected = logits(floats, "reference")
    np.testing.assert_array_equal(logits(quantized, "reference"), expected)
    assert deviation(logits(quantized), expected) < 0.04


@pytest.mark.parametrize("name", MODELS)
def test_matrices_are_computed_on_without_loss(tmp_path: Path, name: str) -> None:
    """The reference executor gives the logits of the same numbers as floats; the native one rounds activations only."""
    quantized, floats = written(tmp_path, WIDE, *MODELS[name][:2])
    expected = logits(floats, "reference")
    np.testing.assert_array_equal(logits(quantized, "reference"), expected)
    assert deviation(logits(quantized), expected) < MODELS[name][2]


def test_a_bias_of_zeros_may_be_there(tmp_path: Path) -> None:
    """As in checkpoints of AutoGPTQ's first versions; another one would change the model."""
    name = "model.layers.0.self_attn.o_proj.bias"
    quantized, floats = written(tmp_path, WIDE, *MODELS["gptq-4"][:2], extra={name: np.zeros(256, np.float16)})
    np.testing.assert_array_equal(logits(quantized, "reference"), logits(floats, "reference"))
    (tmp_path / "other").mkdir()
    quantized, _ = written(tmp_path / "other", WIDE, *MODELS["gptq-4"][:2], extra={name: np.ones(256, np.float16)})
    with pytest.raises(LoadError, match=rf"1 tensor is left over, unknown to this architecture: {name}"):
        logits(quantized)


def test_matrices_are_not_quantized_anew(tmp_path: Path) -> None:
    quantized, _ = written(tmp_path, WIDE, *MODELS["awq"][:2])
    with pytest.raises(LoadError, match="quantized in the file, and cannot become q4f16_1 without loss"):
        MLCEngine(str(quantized), quantization="q4f16_1")


def test_a_damaged_matrix_names_its_tensor(tmp_path: Path) -> None:
    def damaged(rng: np.random.Generator, name: str, rows: int, columns: int) -> Matrix:
        matrix = gptq(rng, rows, columns)
        if projection(name) == "down":
            matrix.pieces["scales"][2, 5] = np.nan
        return matrix

    rng = np.random.default_rng(4)
    config = {**GPTQ, "bits": 4}
    write_checkpoint(tmp_path, WIDE, config, lambda name, rows, columns: damaged(rng, name, rows, columns))
    with pytest.raises(LoadError, match=r"mlp\.down_proj\.weight: a number is not finite"):
        MLCEngine(str(tmp_path))


def test_a_second_load_maps_what_the_first_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("windlass.serve.kept_weights.LEAST_BYTES", 0)
    for name in ("gptq-4-act-order", "float-blocks"):
        (tmp_path / name).mkdir()
        quantized, _ = written(tmp_path / name, WIDE, *MODELS[name][:2])
        answers = []
        for _ in range(2):
            with MLCEngine(str(quantized)) as engine:
                choice = engine.completions.create(prompt=PROMPT, max_tokens=8, temperature=0, logprobs=1).choices[0]
                answers.append(choice.model_dump())
        assert answers[0] == answers[1]
