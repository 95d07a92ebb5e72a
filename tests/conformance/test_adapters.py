"""Adapters on both executors against PEFT, whose answers tools/make_adapter_goldens.py wrote, and their files."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.adapters import ADAPTER_CASES, EVERY, PREFIX, adapter_tensors, write_adapter
from support.executors import EXECUTORS, make_executor
from support.native import Chunk, batch_of, single
from support.tiny_models import CASES, F32, program_weights
from windlass.errors import LoadError
from windlass.models.registry import define_model
from windlass.program.executor import Executor
from windlass.program.program import Program
from windlass.serve.adapters import AdapterSource

GOLDEN = Path(__file__).parent / "goldens" / "adapters.npz"
TOLERANCE = 1e-4
MODEL = "llama2"


def program_of(model: str) -> Program:
    config = CASES[model].config
    return define_model(config["model_type"], config, Path("config.json"), dialect="hf").program


def executor_of(kind: str, model: str) -> Executor:
    program = program_of(model)
    weights = program_weights(program, CASES[model].weights())
    return make_executor(kind, program, weights, num_pages=8, max_positions=64)


def golden_of(name: str) -> dict[str, Any]:
    with np.load(GOLDEN) as file:
        golden = {key.rpartition(".")[2]: file[key] for key in file.files if key.rpartition(".")[0] == name}
    assert str(golden["digest"]) == ADAPTER_CASES[name].digest(), "it changed: run tools/make_adapter_goldens.py"
    return golden


def go_on() -> None:
    """Nobody interrupts."""


@pytest.mark.parametrize("kind", EXECUTORS)
@pytest.mark.parametrize("name", ADAPTER_CASES)
def test_logits_are_those_of_peft(kind: str, name: str, tmp_path: Path) -> None:
    case, golden = ADAPTER_CASES[name], golden_of(name)
    executor = executor_of(kind, case.model)
    source = AdapterSource(Path(case.write(tmp_path)), program_of(case.model))
    adapter = executor.pack_adapter(source.updates(go_on))
    prompt, expected = golden["prompt"].tolist(), golden["logits"]
    batch = batch_of(Chunk(prompt, 0, [4, 1, 6]), Chunk(prompt, 0, [0, 2, 3]))
    logits = executor.run(dataclasses.replace(batch, adapters=(adapter, None)))
    error = np.abs(logits[golden["rows"]] - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE
    np.testing.assert_allclose(logits[len(prompt) :], executor.run(single(prompt)), rtol=0, atol=1e-4)
    executor.close()


# What is refused, and how it is said

TENSORS = adapter_tensors(CASES[MODEL].config, seed=9)
FIRST_A = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
FIRST_B = FIRST_A.replace("lora_A", "lora_B")


def refusal(path: Path, tensors: dict[str, F32] | None = None, **config: Any) -> str:
    write_adapter(path, TENSORS if tensors is None else tensors, **config)
    return why(path)


def why(path: Path) -> str:
    with pytest.raises(LoadError) as caught:
        list(AdapterSource(path, program_of(MODEL)).updates(go_on))
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; supported: LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'; supported: CAUSAL_LM"),
        ({"bias": "all"}, "bias is 'all'; supported: none"),
        ({"use_dora": True}, "DoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"lora_bias": True}, "biases"),
        ({"init_lora_weights": "pissa"}, "accepted are adapters converted to plain LoRA"),
        ({"init_lora_weights": ["pissa"]}, "init_lora_weights"),
        ({"modules_to_save": ["lm_head"]}, "unknown keys: modules_to_save"),
        ({"layer_replication": [[0, 2]]}, "unknown keys: layer_replication"),
        ({"target_parameters": ["mlp.experts"]}, "unknown keys: target_parameters"),
        ({"trainable_token_indices": [1]}, "unknown keys: trainable_token_indices"),
        ({"alora_invocation_tokens": [1]}, "unknown keys: alora_invocation_tokens"),
        ({"loftq_config": {"bits": 4}}, "unknown keys: loftq_config"),
        ({"something_new": 1}, "supported: .*target_modules|unknown keys: something_new"),
        ({"r": 0}, "r is 0"),
        ({"r": "8"}, "r is '8', which must be an integer"),
        ({"r": 8}, r"lora_A.weight' has shape \[4, 64\]; .* ask for \[8, 64\]"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"use_rslora": 1}, "use_rslora is 1, which must be true or false"),
        ({"fan_in_fan_out": "no"}, "fan_in_fan_out"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"target_modules": []}, "target_modules is missing"),
        ({"target_modules": 7}, "target_modules must be a list of names"),
        ({"target_modules": [7]}, "target_modules must be a list of names"),
        ({"target_modules": ["c_attn"]}, "target_modules name no linear layer of this model"),
        ({"target_modules": ["q_proj"]}, "is not the A or B of a linear layer of this model that target_modules name"),
        ({"target_modules": "(q_proj"}, "regular expression that is not accepted"),
        ({"exclude_modules": [*EVERY]}, "target_modules name no linear layer"),
        ({"layers_to_transform": [0]}, "tensor .*layers.1.* is not the A or B"),
        ({"layers_to_transform": "0"}, "layers_to_transform must be"),
        ({"layers_to_transform": [0], "target_modules": ".*"}, "layers_to_transform is for target_modules that are"),
        ({"layers_to_transform": [0], "layers_pattern": "h"}, "target_modules name no linear layer"),
        ({"layers_pattern": "(a+)+"}, "layers_pattern must be"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern.q_proj is 0"),
        ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern.q_proj is 2.5, which must be an integer"),
        ({"rank_pattern": {"q_proj": 3}}, r"q_proj.lora_A.weight' has shape \[4, 64\]; .* ask for \[3, 64\]"),
        ({"rank_pattern": [1]}, "rank_pattern is .1., which must be an object"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern has '[(]', a regular expression that is not accepted"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern.q_proj is -1"),
    ],
)
def test_a_configuration_that_is_not_accepted(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    said = refusal(tmp_path, **config)
    assert re.search(message, said), said
    assert str(tmp_path) in said


def test_keys_that_change_nothing(tmp_path: Path) -> None:
    """All that PEFT 0.21 writes of an adapter that uses none of it."""
    unused = {
        **dict.fromkeys(("alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config")),
        **dict.fromkeys(("exclude_modules", "layer_replication", "layers_pattern", "layers_to_transform"), None),
        **dict.fromkeys(("megatron_config", "modules_to_save", "revision", "target_parameters", "use_bdlora"), None),
        **dict.fromkeys(("inference_mode", "init_lora_weights"), True),
        **dict.fromkeys(("ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_dora", "use_qalora"), False),
        "alpha_pattern": {},
        "rank_pattern": {},
        "loftq_config": {},
        "lora_dropout": 0.05,
        "qalora_group_size": 16,
        "base_model_name_or_path": "x/y",
        "megatron_core": "megatron.core",
        "peft_version": "0.21.2",
        "bias": "none",
        "something_new": None,
        "another": False,
    }
    write_adapter(tmp_path, TENSORS, **unused)
    updates = list(AdapterSource(tmp_path, program_of(MODEL)).updates(go_on))
    assert len(updates) == 4 * 2
    assert {piece.scale for _, pieces in updates for piece in pieces} == {2.0}


def renamed(old: str, new: str) -> dict[str, F32]:
    return {name.replace(old, new): tensor for name, tensor in TENSORS.items()}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({k: v for k, v in TENSORS.items() if k != FIRST_A}, f"tensor {FIRST_A!r} is missing"),
        ({k: v for k, v in TENSORS.items() if k != FIRST_B}, f"tensor {FIRST_B!r} is missing"),
        ({}, "is missing"),
        ({**TENSORS, "more": np.ones(1, np.float32)}, "tensor 'more' is not the A or B"),
        (renamed("lora_A.weight", "lora_magnitude_vector"), "lora_magnitude_vector' is not the A or B"),
        (renamed("layers.1", "layers.2"), "layers.2.* is not the A or B"),
        (renamed(PREFIX, ""), f"one that is accepted is {FIRST_A!r}"),
        ({**TENSORS, FIRST_A: TENSORS[FIRST_A].T.copy()}, r"has shape \[64, 4\]; .* ask for \[4, 64\]"),
        ({**TENSORS, FIRST_A: TENSORS[FIRST_A].ravel()}, r"has shape \[256\]"),
        ({**TENSORS, FIRST_B: TENSORS[FIRST_B][:-1]}, r"has shape \[63, 4\]"),
        ({**TENSORS, FIRST_B: TENSORS[FIRST_B] * np.float32(np.nan)}, "a number is not finite"),
    ],
)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_tensors_that_are_not_accepted(tmp_path: Path, tensors: dict[str, F32], message: str, dtype: str) -> None:
    said = refusal(tmp_path, tensors, dtype=dtype)
    assert re.search(message, said), said
    assert "adapter_model.safetensors" in said


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert "adapter_config.json is missing" in why(tmp_path)
    write_adapter(tmp_path, TENSORS)
    weights = tmp_path / "adapter_model.safetensors"
    weights.rename(tmp_path / "adapter_model.bin")
    assert "adapter_model.safetensors is missing" in why(tmp_path)
    shutil.rmtree(tmp_path)
    assert "adapter_config.json is missing" in why(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"PK\x03\x04" + data,
        lambda data: (1 << 62).to_bytes(8, "little") + data[8:],
        lambda data: data.replace(b'"F32"', b'"I64"', 1),
        lambda data: data + b"\0",
    ],
)
def test_damaged_tensors(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_adapter(tmp_path, TENSORS)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert str(file) in why(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"r": 1, "r": }', '{"a":' * 100_000])
def test_damaged_configuration(tmp_path: Path, text: str) -> None:
    write_adapter(tmp_path, TENSORS)
    (tmp_path / "adapter_config.json").write_text(text)
    assert "adapter_config.json" in why(tmp_path)
