"""Every architecture on both executors against Hugging Face transformers, whose answers tools/make_goldens.py wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.executors import EXECUTORS, make_executor
from support.greedy import GreedyDriver
from support.greedy import Sequence as Greedy
from support.tiny_models import CASES, program_weights
from windlass.models.definition import ModelDefinition
from windlass.models.registry import define_model
from windlass.program.executor import Executor
from windlass.quantization.tensor import Tensor

GOLDENS = Path(__file__).parent / "goldens"
NUM_PAGES = 40
TOLERANCE = 1e-4


@cache
def load_case(name: str) -> tuple[ModelDefinition, dict[str, Tensor], dict[str, np.ndarray[Any, Any]]]:
    case = CASES[name]
    definition = define_model(case.config["model_type"], case.config, Path("config.json"), dialect="hf")
    with np.load(GOLDENS / f"{name}.npz") as file:
        golden = dict(file)
    assert str(golden["digest"]) == case.digest(), "the model changed: run tools/make_goldens.py"
    return definition, program_weights(definition.program, case.weights()), golden


THOROUGH = (
    *("llama2", "llama3-tied", "llama3.1-rope", "llama-linear", "llama-dynamic", "llama-yarn", "llama-biases"),
    *("mistral", "qwen2", "qwen2-window", "qwen3"),
)
"""The models that try every executor and every way to cut prompts; the others are about their own operations."""


def runs(
    chunks: Sequence[int | None], few: Sequence[int | None], on_reference: Sequence[int | None]
) -> list[tuple[str, str, int | None]]:
    """(model, executor, chunk): the thorough with all ``chunks``, others with a ``few``, and fewer on the reference."""
    every = [(name, executor, chunk) for name in THOROUGH for executor in EXECUTORS for chunk in chunks]
    others = [name for name in CASES if name not in THOROUGH]
    some = [("reference", chunk) for chunk in on_reference] + [(EXECUTORS[-1], chunk) for chunk in few]
    return every + [(name, executor, chunk) for name in others for executor, chunk in some]


@pytest.fixture
def executor(request: pytest.FixtureRequest, name: str) -> Iterator[Executor]:
    definition, weights, _ = load_case(name)
    executor = make_executor(request.param, definition.program, weights, num_pages=NUM_PAGES, max_positions=128)
    yield executor
    executor.close()


def prompts(golden: dict[str, np.ndarray[Any, Any]]) -> list[list[int]]:
    return [golden[f"prompt_{i}"].tolist() for i in range(4)]


def check(sequence: Greedy, golden: dict[str, np.ndarray[Any, Any]], number: int) -> None:
    computed = golden[f"rows_{number}"] < len(sequence.logits)
    rows, expected = golden[f"rows_{number}"][computed], golden[f"logits_{number}"][computed]
    actual = np.stack([sequence.logits[row] for row in rows])
    error = np.abs(actual - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error.max() <= TOLERANCE, f"prompt {number}: errors {error} at positions {rows}"
    assert sequence.generated == golden[f"tokens_{number}"][: len(sequence.generated)].tolist()


@pytest.mark.parametrize(
    ("name", "executor", "chunk"), runs([None, 1, 7, 16, 33], [None, 7], []), indirect=["executor"]
)
def test_single_prompts_whole_and_in_chunks(name: str, executor: Executor, chunk: int | None) -> None:
    golden = load_case(name)[2]
    driver = GreedyDriver(executor, NUM_PAGES)
    # Once the prompt is in the cache all go on alike: over the next page, and one as far as there are answers.
    length = 64 if chunk is None else 20
    for number, prompt in enumerate(prompts(golden)):
        sequence = driver.generate(prompt, length, chunk=chunk)
        check(sequence, golden, number)
        driver.free(sequence)


@pytest.mark.parametrize(("name", "executor", "chunk"), runs([7, 16, 64], [16, 64], [16]), indirect=["executor"])
def test_ragged_batches_of_prompts_at_different_stages(name: str, executor: Executor, chunk: int) -> None:
    golden = load_case(name)[2]
    sequences = GreedyDriver(executor, NUM_PAGES).generate_together(prompts(golden), 64, chunk=chunk, stagger=3)
    for number, sequence in enumerate(sequences):
        check(sequence, golden, number)
