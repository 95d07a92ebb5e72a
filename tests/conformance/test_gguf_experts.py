"""Mixtures of experts in GGUF files: the numbers of the Hugging Face models that they were written from."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from support.executors import EXECUTORS, make_executor
from support.gguf_moe import rope_factors, write_moe_gguf
from support.greedy import GreedyDriver
from support.model_forms import MIXTURE_GGUF
from support.tiny_models import CASES, program_weights
from windlass.errors import LoadError
from windlass.models.config import ConfigReader
from windlass.models.definition import ModelDefinition
from windlass.models.gguf_config import from_gguf_metadata
from windlass.models.registry import FAMILIES, define_model, find_gguf_family
from windlass.quantization import Format, Tensor
from windlass.weights.gguf import read_gguf
from windlass.weights.gguf_names import hugging_face_tensors, read_rope_factors
from windlass.weights.loader import load_weights
from windlass.weights.source import WeightSource

F32 = NDArray[np.float32]
PROMPT = np.random.default_rng(3).integers(0, 300, 50).tolist()
FIXED_IN_LLAMA_CPP = {"attention_chunk_size": 8192, "floor_scale": 8192}


def logits(definition: ModelDefinition, weights: dict[str, Tensor], executor_name: str = EXECUTORS[-1]) -> F32:
    executor = make_executor(executor_name, definition.program, weights, num_pages=8, max_positions=128)
    try:
        return np.array(GreedyDriver(executor, 8).generate(PROMPT, 1).logits)
    finally:
        executor.close()


def expected(name: str) -> F32:
    config = dict(CASES[name].config)
    if name == "llama4_text":
        config |= FIXED_IN_LLAMA_CPP
    definition = define_model(config["model_type"], config, Path("config.json"), dialect="hf")
    return logits(definition, program_weights(definition.program, CASES[name].weights()))


def load(path: Path) -> tuple[ModelDefinition, dict[str, Tensor]]:
    model = read_gguf(path)
    model_type, dialect = find_gguf_family(model.metadata, path)
    tensors = hugging_face_tensors(model, dialect.tensors, dialect.paired)
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    config = from_gguf_metadata(dialect, model.metadata, shapes, read_rope_factors(model), path)
    definition = FAMILIES[model_type].define(ConfigReader(config, path))
    with WeightSource(path, tensors) as source:
        return definition, dict(load_weights(definition.program.weights, source))


@pytest.mark.parametrize("name", MIXTURE_GGUF)
def test_a_mixture_is_the_one_that_it_was_written_from(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = write_moe_gguf(tmp_path / "m.gguf", case.config, case.weights(), rope_factors=rope_factors(case.config))
    definition, weights = load(path)
    assert definition.model_type == case.config["model_type"]
    np.testing.assert_allclose(logits(definition, weights), expected(name), atol=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v2_lite"])
def test_old_files_too(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = write_moe_gguf(tmp_path / "m.gguf", case.config, case.weights(), old=True)
    np.testing.assert_allclose(logits(*load(path)), expected(name), atol=1e-4)


def test_experts_in_mxfp4_are_computed_on_as_they_are(tmp_path: Path) -> None:
    case = CASES["gpt_oss"]
    config = {**case.config, "intermediate_size": 64}
    model = type(case)("gpt_oss", config, case.seed)
    blocks = {"_exps.weight": gguf.GGMLQuantizationType.MXFP4}
    definition, weights = load(write_moe_gguf(tmp_path / "m.gguf", config, model.weights(), blocks=blocks))
    for name in ("gate_up_proj", "down_proj"):
        assert weights[f"model.layers.1.mlp.experts.{name}"].format is Format.INT8
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    up = stored["blk.1.ffn_up_exps.weight"]
    numbers = gguf.quants.dequantize(up.data, up.tensor_type)
    halves = weights["model.layers.1.mlp.experts.gate_up_proj"].dequantize().reshape(5, 2, 64, 64)
    np.testing.assert_array_equal(halves[:, 1], numbers)
    assert np.isfinite(logits(definition, weights)).all()


@pytest.mark.parametrize("old", [False, True])
def test_heads_in_blocks_stay_so_unless_they_are_turned(tmp_path: Path, old: bool) -> None:
    case = CASES["deepseek_v2_lite"]
    model = type(case)("heads", {**case.config, "qk_nope_head_dim": 32}, case.seed)
    kind = gguf.GGMLQuantizationType.Q8_0
    blocks = {"attn_kv_b.weight": kind} if old else {"attn_k_b.weight": kind, "attn_v_b.weight": kind}
    definition, weights = load(
        write_moe_gguf(tmp_path / "m.gguf", model.config, model.weights(), old=old, blocks=blocks)
    )
    keys, values = (weights[f"model.layers.0.self_attn.{name}"] for name in ("w_uk", "w_uv"))
    assert (keys.format, values.format) == (Format.F32 if old else Format.INT8, Format.INT8)
    plain = (
        program_weights(definition.program, model.weights())
        if old
        else load(write_moe_gguf(tmp_path / "floats.gguf", model.config, model.weights()))[1]
    )
    for name in ("w_uk", "w_uv"):
        stored, expected = (group[f"model.layers.0.self_attn.{name}"].dequantize() for group in (weights, plain))
        np.testing.assert_allclose(stored, expected, atol=np.abs(expected).max() / 127)
    assert np.isfinite(logits(definition, weights)).all()


def test_experts_that_cannot_be_cut_are_refused(tmp_path: Path) -> None:
    case = CASES["mixtral"]
    weights = case.weights()
    path = write_moe_gguf(tmp_path / "m.gguf", {**case.config, "num_local_experts": 3}, weights)
    with pytest.raises(LoadError, match="left over"):
        load(path)
