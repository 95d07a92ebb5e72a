"""GGUF models: what comes out is what comes out of the same numbers elsewhere."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from support.gguf_dense import write_dense_gguf
from support.gguf_files import BLOCK_TYPES, dequantized, llama3_factors, random_blocks, write_gguf
from support.gguf_layer_norm import write_layer_norm_gguf
from support.model_forms import DENSE_GGUF, LAYER_NORM_GGUF, PLAIN_GGUF
from support.prompt_logits import prompt_logits
from support.tiny_models import CASES, TinyModel, write_hf_directory
from windlass import LoadError, MLCEngine
from windlass.quantization.ggml import GGML_TYPES

F32 = NDArray[np.float32]
PROMPT = [3, 17, 29, 5, 200, 31, 8, 150, 77, 42, 11, 100, 6, 9, 250, 33, 12, 180]


def logits(path: Path, executor: Literal["native", "reference"] = "native") -> Any:
    """Of all positions of the prompt."""
    return prompt_logits(path, PROMPT, executor)


def test_stories_gives_its_goldens(data_dir: Path) -> None:
    goldens = json.loads((data_dir / "weights" / "goldens-stories260K.json").read_text())["stories260K"]
    with MLCEngine(str(data_dir / "weights" / "stories260K.gguf")) as engine:
        for golden in goldens:
            answer = engine.completions.create(
                prompt=golden["prompt_ids"],
                max_tokens=len(golden["greedy_ids"]),
                temperature=0,
                debug_config={"ignore_eos": True},
            )
            expected = engine.tokenizer.decode([*golden["prompt_ids"], *golden["greedy_ids"]])
            shown = engine.tokenizer.decode(golden["prompt_ids"]) + answer.choices[0].text
            assert shown.strip() == expected.strip()


@pytest.mark.parametrize("name", PLAIN_GGUF)
@pytest.mark.parametrize("executor", ["native", "reference"])
def test_a_model_is_the_one_that_it_was_written_from(tmp_path: Path, name: str, executor: str) -> None:
    model = CASES[name]
    (tmp_path / "hf").mkdir()
    directory = write_hf_directory(model, tmp_path / "hf")
    write_tokenizer(directory, model.config["vocab_size"])
    file = write_gguf(tmp_path / "m.gguf", model.config, model.weights())
    np.testing.assert_array_equal(logits(file, executor), logits(directory, executor))


@pytest.mark.parametrize("name", DENSE_GGUF)
def test_a_dense_family_is_the_one_that_it_was_written_from(tmp_path: Path, name: str) -> None:
    model = CASES[name]
    if name in (
        "gemma2",
        "gemma3_text",
    ):  # such files do not say the scale of the scores: it is a head's, but for the largest model
        model = replace(model, config={**model.config, "query_pre_attn_scalar": model.config["head_dim"]})
    if name == "gemma3_text":
        model = replace(model, config={**model.config, "sliding_window_pattern": 6})
    if name == "smollm3":
        model = replace(model, config={**model.config, "no_rope_layers": None, "use_sliding_window": False})
    (tmp_path / "hf").mkdir()
    directory = write_hf_directory(model, tmp_path / "hf")
    write_tokenizer(directory, model.config["vocab_size"])
    file = write_dense_gguf(tmp_path / "m.gguf", model)
    np.testing.assert_allclose(logits(file), logits(directory), atol=1e-5)


@pytest.mark.parametrize("name", LAYER_NORM_GGUF)
def test_a_family_with_layer_norms_is_the_one_that_it_was_written_from(tmp_path: Path, name: str) -> None:
    model = CASES[name]
    # Such files do not say which activation there is, nor have they GPT-2's scale by layer or StarCoder2's window.
    plain = {"gpt2": "gelu_new", "gpt_neox": "gelu"}.get(model.config["model_type"])
    changes = {key: plain for key in ("activation_function", "hidden_act") if plain and key in model.config}
    changes |= {key: None for key in ("scale_attn_by_inverse_layer_idx",) if key in model.config}
    changes |= {"sliding_window": None} if model.config["model_type"] == "starcoder2" else {}
    model = replace(model, config={**model.config, **changes})
    (tmp_path / "hf").mkdir()
    directory = write_hf_directory(model, tmp_path / "hf")
    write_tokenizer(directory, model.config["vocab_size"])
    file = write_layer_norm_gguf(tmp_path / "m.gguf", model)
    np.testing.assert_allclose(logits(file), logits(directory), atol=1e-5)


def test_slowed_pairs_are_llama_3_1_s_scaling(tmp_path: Path) -> None:
    model = CASES["llama3.1-rope"]
    (tmp_path / "hf").mkdir()
    directory = write_hf_directory(model, tmp_path / "hf")
    write_tokenizer(directory, model.config["vocab_size"])
    dim = model.config["hidden_size"] // model.config["num_attention_heads"]
    file = write_gguf(
        tmp_path / "m.gguf",
        model.config,
        model.weights(),
        extra={"rope_freqs.weight": llama3_factors(model.config, dim)},
    )
    np.testing.assert_allclose(logits(file), logits(directory), atol=2e-5)
    plain = write_gguf(tmp_path / "n.gguf", model.config, model.weights())
    assert np.abs(logits(plain) - logits(directory)).max() > 1e-3


def deviation(values: F32, expected: F32) -> float:
    """The root mean square of the differences, as a part of that of ``expected``."""
    return float(np.sqrt(np.square(values - expected).mean() / np.square(expected).mean()))


def write_tokenizer(directory: Path, size: int) -> None:
    """The vocabulary of ``write_gguf``."""
    vocab = {f"<{number}>": number for number in range(size)}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    tokenizer = {"version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"}, "model": model}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


WIDE = TinyModel(
    "wide",
    {
        **CASES["llama2"].config,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    seed=9,
)


def in_blocks(numbers: dict[str, int]) -> tuple[dict[str, NDArray[Any]], dict[str, int], dict[str, F32]]:
    """The matrices of WIDE as blocks, by the last part of their names; their types; and all weights as floats."""
    rng = np.random.default_rng(4)
    stored: dict[str, NDArray[Any]] = {}
    types: dict[str, int] = {}
    plain: dict[str, F32] = {}
    for name, data in WIDE.weights().items():
        stored[name] = plain[name] = data
        if data.ndim == 2:
            number = numbers.get(name.split(".")[-2], numbers["default"])
            stored[name] = random_blocks(number, data.shape[0], data.shape[1], rng)
            types[name] = number
            plain[name] = dequantized(number, stored[name])
    return stored, types, plain


@pytest.mark.parametrize("number", BLOCK_TYPES, ids=lambda number: GGML_TYPES[number].name)
def test_blocks_are_computed_on_without_loss(tmp_path: Path, number: int) -> None:
    """The reference executor gives the logits of the same numbers as floats; the native one has 8-bit activations."""
    stored, types, plain = in_blocks({"default": number})
    blocks = write_gguf(tmp_path / "blocks.gguf", WIDE.config, stored, types)
    floats = write_gguf(tmp_path / "floats.gguf", WIDE.config, plain)
    expected = logits(floats, "reference")
    np.testing.assert_array_equal(logits(blocks, "reference"), expected)
    # Against int4 activations have 8 bits, against int8 15.
    assert deviation(logits(blocks), expected) < (0.04 if GGML_TYPES[number].zero is not None else 0.004)


def test_parts_of_one_weight_may_have_different_types(tmp_path: Path) -> None:
    """As usual mixtures have: the values and the gate are finer than the rest."""
    by_name = {kind.name: number for number, kind in GGML_TYPES.items()}
    for finer, rest in (("Q6_K", "Q4_0"), ("Q8_0", "IQ4_XS"), ("Q6_K", "Q4_K"), ("Q5_0", "Q4_0")):
        numbers = {"default": by_name[rest], "v_proj": by_name[finer], "gate_proj": by_name[finer]}
        stored, types, plain = in_blocks(numbers)
        blocks = write_gguf(tmp_path / f"{finer}{rest}.gguf", WIDE.config, stored, types)
        floats = write_gguf(tmp_path / f"{finer}{rest}-floats.gguf", WIDE.config, plain)
        expected = logits(floats, "reference")
        np.testing.assert_array_equal(logits(blocks, "reference"), expected)
        assert deviation(logits(blocks), expected) < 0.04


def test_blocks_are_not_quantized_anew(tmp_path: Path) -> None:
    stored, types, _ = in_blocks({"default": 8})
    path = write_gguf(tmp_path / "m.gguf", WIDE.config, stored, types)
    with pytest.raises(LoadError, match="quantized in the file, and cannot become q4f16_1 without loss"):
        MLCEngine(str(path), quantization="q4f16_1")


def test_scales_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    stored, types, _ = in_blocks({"default": 8})
    name = "model.layers.0.mlp.down_proj.weight"
    stored[name][3, :2] = (0x00, 0x7C)
    path = write_gguf(tmp_path / "m.gguf", WIDE.config, stored, types)
    with pytest.raises(LoadError, match=r"mlp\.down_proj\.weight: a number is not finite"):
        MLCEngine(str(path))


def test_a_second_load_maps_what_the_first_packed(tmp_path: Path) -> None:
    stored, types, _ = in_blocks({"default": 2, "v_proj": 14})
    path = write_gguf(tmp_path / "m.gguf", WIDE.config, stored, types)
    answers = []
    for _ in range(2):
        with ExitStack() as stack:
            engine = stack.enter_context(MLCEngine(str(path)))
            answers.append(
                engine.completions.create(prompt=PROMPT, max_tokens=8, temperature=0, logprobs=1)
                .choices[0]
                .model_dump()
            )
    assert answers[0] == answers[1]
