"""MLC directories of mixtures of experts as MLC LLM writes them: its names, its axes, its order of rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.executors import EXECUTORS, make_executor
from support.greedy import GreedyDriver
from support.model_forms import MIXTURE_MLC
from support.tiny_models import CASES, program_weights
from support.weight_files import write_mlc
from windlass.models.definition import ModelDefinition
from windlass.models.registry import define_model
from windlass.quantization import SCHEMES, Tensor
from windlass.weights.loader import load_weights
from windlass.weights.mlc import open_mlc

F16 = NDArray[np.float16]
PROMPT = np.random.default_rng(5).integers(0, 300, 50).tolist()
RUNTIME = {"context_window_size": 256, "prefill_chunk_size": 256, "tensor_parallel_shards": 1, "max_batch_size": 1}


def logits(definition: ModelDefinition, weights: dict[str, Tensor]) -> NDArray[np.float32]:
    executor = make_executor(EXECUTORS[-1], definition.program, weights, num_pages=8, max_positions=128)
    try:
        return np.array(GreedyDriver(executor, 8).generate(PROMPT, 1).logits)
    finally:
        executor.close()


def mlc_tensors(config: dict[str, Any], tensors: dict[str, F16]) -> dict[str, F16]:
    """What MLC LLM's loaders (``model/*/*_loader.py``) make of the tensors of Hugging Face."""
    left = dict(tensors)
    made: dict[str, F16] = {}

    def join(name: str, parts: list[str]) -> None:
        made[name] = np.concatenate([left.pop(part) for part in parts])

    mixtral = config["model_type"] == "mixtral"
    experts = next(config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config)
    fused = "qkv_proj" if mixtral else "c_attn"
    for layer in range(config["num_hidden_layers"]):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        for kind in ("weight", "bias"):
            if f"{attention}.k_proj.{kind}" in left:
                join(f"{attention}.{fused}.{kind}", [f"{attention}.{part}_proj.{kind}" for part in "qkv"])
        names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        stored = f"model.layers.{layer}.block_sparse_moe" if mixtral else mlp
        if f"{stored}.experts.0.{names[0]}.weight" in left:
            per_expert = [
                [left.pop(f"{stored}.experts.{expert}.{name}.weight") for name in names] for expert in range(experts)
            ]
            block = f"model.layers.{layer}.moe" if mixtral else mlp
            gate_up, down = ("e1_e3", "e2") if mixtral else ("moe_gate_up_proj", "moe_down_proj")
            made[f"{block}.{gate_up}.weight"] = np.stack([np.concatenate((gate, up)) for gate, up, _ in per_expert])
            made[f"{block}.{down}.weight"] = np.stack([down for *_, down in per_expert])
            made[f"{block}.gate.weight"] = left.pop(f"{stored}.gate.weight")
        for name in (mlp, f"{mlp}.shared_expert", f"{mlp}.shared_experts"):
            if f"{name}.gate_proj.weight" in left:
                join(f"{name}.gate_up_proj.weight", [f"{name}.gate_proj.weight", f"{name}.up_proj.weight"])
        if f"{attention}.kv_b_proj.weight" in left:  # which stays, beside what is made of it
            nope = config["qk_nope_head_dim"]
            heads = left[f"{attention}.kv_b_proj.weight"].reshape(
                config["num_attention_heads"], nope + config["v_head_dim"], -1
            )
            made[f"{attention}.w_uk"] = np.ascontiguousarray(heads[:, :nope].transpose(0, 2, 1))
            made[f"{attention}.w_uv"] = np.ascontiguousarray(heads[:, nope:])
    return {re.sub(r"\.gate\.e_score", ".e_score", name): array for name, array in {**left, **made}.items()}


@pytest.mark.parametrize("name", MIXTURE_MLC)
def test_directories_of_mlc_llm_give_the_logits_of_the_model(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    config = dict(case.config)
    model_type = config.pop("model_type")
    halves = {name: array.astype(np.float16) for name, array in case.weights().items()}
    definition = define_model(model_type, config, Path("config.json"), dialect="hf")
    floats = {name: array.astype(np.float32) for name, array in halves.items()}
    expected = logits(definition, program_weights(definition.program, floats))

    write_mlc(tmp_path, mlc_tensors({**config, "model_type": model_type}, halves))
    if model_type == "mixtral":
        config["position_embedding_base"] = config.pop("rope_theta")
    for key in ("max_position_embeddings", "architectures", "torch_dtype"):
        del config[key]
    mlc = define_model(model_type, {**config, **RUNTIME}, tmp_path / "mlc-chat-config.json", dialect="mlc")
    with open_mlc(tmp_path, SCHEMES["q0f16"]) as source:
        weights = dict(load_weights(mlc.program.weights, source, ignored=mlc.ignored_tensors))
    np.testing.assert_array_equal(logits(mlc, weights), expected)
