"""One model in every kind of directory: converted or quantized while loading, it must be the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.executors import make_executor
from support.greedy import GreedyDriver
from support.model_forms import CONVERTED_MLC
from support.tiny_models import CASES, write_hf_directory
from windlass.models.registry import define_model
from windlass.quantization import SCHEMES, Format, Tensor, bf16_to_f32, f32_to_bf16
from windlass.serve.convert import convert
from windlass.weights import load_weights, open_model_directory

PROMPT = [1, 17, 240, 33, 5, 99, 301, 2, 64]


def load(path: Path, scheme: str | None = None) -> tuple[object, dict[str, Tensor]]:
    directory = open_model_directory(path)
    definition = define_model(directory.model_type, directory.config, directory.config_path, dialect=directory.dialect)
    wanted = None if scheme is None else SCHEMES[scheme]
    with directory.open_weights() as source:
        specs = definition.program.weights
        return definition, dict(load_weights(specs, source, wanted, ignored=definition.ignored_tensors))


def on_disk(tensor: Tensor) -> Tensor:
    """What is left of a tensor in an MLC directory: float32 numbers are rounded to bfloat16."""

    def rounded(array: object) -> object:
        if isinstance(array, np.ndarray) and array.dtype == np.float32:
            return bf16_to_f32(f32_to_bf16(array))
        return array

    return Tensor(
        tensor.format, tensor.shape, rounded(tensor.data), tensor.group_size, rounded(tensor.scales), tensor.zeros
    )


def assert_same(left: Tensor, right: Tensor, name: str) -> None:
    assert (left.format, left.shape, left.group_size) == (right.format, right.shape, right.group_size), name
    for part in ("data", "scales", "zeros"):
        a, b = getattr(left, part), getattr(right, part)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and np.array_equal(a, b)), name


CONVERTED = [(case, scheme) for case in ("llama3-tied", "qwen2") for scheme in SCHEMES]


@pytest.mark.parametrize(("case", "scheme"), [*CONVERTED, ("mixtral", "q4f16_0")])
def test_converting_is_quantizing_while_loading(tmp_path: Path, case: str, scheme: str) -> None:
    source = write_hf_directory(CASES[case], tmp_path / "hf", dtype="BF16", shards=3)
    convert(source, tmp_path / "mlc", scheme)
    _, direct = load(source, scheme)
    _, converted = load(tmp_path / "mlc")
    assert list(converted) == list(direct)
    for name, tensor in converted.items():
        assert_same(tensor, on_disk(direct[name]), name)


@pytest.mark.parametrize("case", CONVERTED_MLC)
def test_a_converted_model_gives_the_same_logits(tmp_path: Path, case: str) -> None:
    source = write_hf_directory(CASES[case], tmp_path / "hf", dtype="F16")
    convert(source, tmp_path / "mlc", "q4f16_1")
    logits = []
    for definition, weights in (load(source, "q4f16_1"), load(tmp_path / "mlc")):
        executor = make_executor("reference", definition.program, weights, num_pages=8, max_positions=128)
        try:
            logits.append(np.array(GreedyDriver(executor, 8).generate(PROMPT, 40).logits))
        finally:
            executor.close()
    assert np.array_equal(logits[0], logits[1])


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_shards_and_one_file_are_the_same(tmp_path: Path, dtype: str) -> None:
    model = CASES["llama-biases"]
    _, one = load(write_hf_directory(model, tmp_path / "one", dtype=dtype))
    _, many = load(write_hf_directory(model, tmp_path / "many", dtype=dtype, shards=4))
    for name, tensor in one.items():
        assert tensor.format is Format[dtype]
        assert_same(tensor, many[name], name)


def test_more_bits_are_closer(tmp_path: Path) -> None:
    source = write_hf_directory(CASES["llama2"], tmp_path / "hf")
    _, exact = load(source)
    errors = []
    for scheme in ("q3f16_1", "q4f16_1", "q8f16_1", "q0f16"):
        _, weights = load(source, scheme)
        difference = [
            np.linalg.norm(weights[name].dequantize() - tensor.dequantize()) / np.linalg.norm(tensor.dequantize())
            for name, tensor in exact.items()
            if len(tensor.shape) == 2
        ]
        errors.append(max(difference))
    # Uniform weights have about a quarter of a step of error: step / max|w| is 1/3, 1/7, 1/127.
    bounds = [0.2, 0.09, 0.005, 0.0005]
    assert all(error < bound for error, bound in zip(errors, bounds, strict=True)), errors
    assert errors == sorted(errors, reverse=True)
