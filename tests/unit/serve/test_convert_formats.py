"""``convert`` from GGUF and to Hugging Face: the numbers, the text side, and that a directory is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from support.gguf_files import dequantized, random_blocks, write_gguf
from support.tiny_models import CASES, TinyModel, tensor_shapes, write_hf_directory
from windlass import EngineConfig, MLCEngine
from windlass.errors import LoadError
from windlass.models.gguf_config import to_hugging_face
from windlass.models.rope import Llama3Rope
from windlass.quantization import SCHEMES, Format, bf16_to_f32, quantize
from windlass.serve.convert import convert
from windlass.serve.convert_to_hf import convert_to_hf
from windlass.serve.new_directory import new_directory
from windlass.weights import open_model_directory, safetensors_writer
from windlass.weights.loader import load_weights
from windlass.weights.safetensors_writer import SafetensorsWriter

F32 = NDArray[np.float32]
LLAMA = CASES["llama2"]
WIDE = TinyModel("wide", {**LLAMA.config, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}, seed=7)
"""Rows that the blocks of every type divide."""


def mixed_gguf(path: Path) -> tuple[Path, dict[str, F32]]:
    """A GGUF file of several types, and what its tensors stand for."""
    rng = np.random.default_rng(5)
    kinds = [gguf.GGMLQuantizationType[name].value for name in ("Q4_K", "Q6_K", "Q8_0", "Q4_0")]
    tensors: dict[str, NDArray[Any]] = {}
    types: dict[str, int] = {}
    values: dict[str, F32] = {}
    for number, (name, data) in enumerate(WIDE.weights().items()):
        tensors[name] = values[name] = data
        if data.ndim == 2:
            kind = types[name] = kinds[number % len(kinds)]
            blocks = tensors[name] = random_blocks(kind, *data.shape, rng)
            values[name] = dequantized(kind, blocks)
    return write_gguf(path, WIDE.config, tensors, types), values


def answer(model: Path, tokens: list[int]) -> list[str]:
    """The tokens that an engine continues with, greedily."""
    config = EngineConfig(verbose=False, kv_cache_dtype="f32", pack_cache=False)
    with MLCEngine(str(model), engine_config=config) as engine:
        response = engine.completions.create(prompt=tokens, max_tokens=16, temperature=0, logprobs=1)
        logprobs = response.choices[0].logprobs
        assert logprobs is not None
        return list(logprobs.tokens or [])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_gguf_file_becomes_hugging_face_s(tmp_path: Path, dtype: Any) -> None:
    path, values = mixed_gguf(tmp_path / "mixed.gguf")
    done = convert_to_hf(path, tmp_path / "out", dtype)
    tensors = load_file(tmp_path / "out/model.safetensors") if dtype == "f32" else {}
    matrices = [name for name in values if values[name].ndim == 2]
    if dtype == "f32":
        assert {name: array.shape for name, array in tensors.items()} == tensor_shapes(WIDE.config)
        assert all(np.array_equal(tensors[name], value) for name, value in values.items())
        assert sum(done.changes["exact"].values()) == len(values)
        assert list(done.changes) == ["exact"]
    else:
        assert list(done.changes) == ["rounded to bfloat16"]
        assert sum(done.changes["rounded to bfloat16"].values()) == len(values)
        with open_model_directory(tmp_path / "out").open_weights() as source:
            for name in matrices:
                assert np.allclose(bf16_to_f32(source.read(name)), values[name], rtol=2**-8, atol=0)
    assert set(done.changes[next(iter(done.changes))]) == {"Q4_K", "Q6_K", "Q8_0", "Q4_0", "float32"}
    assert done.num_bytes == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["torch_dtype"] == {"f32": "float32", "bf16": "bfloat16"}[dtype]
    assert (config["model_type"], config["eos_token_id"]) == ("llama", 2)


def test_the_text_side_of_a_gguf_file_comes_along(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "ab", "\u2581ab"]
    tokens += [f"w{number}" for number in range(LLAMA.config["vocab_size"] - len(tokens))]
    path = write_gguf(tmp_path / "a.gguf", LLAMA.config, LLAMA.weights(), tokens=tokens)
    convert_to_hf(path, tmp_path / "hf", "f32")
    convert(path, tmp_path / "mlc", "q0f16")
    ids = []
    for model in (path, tmp_path / "hf", tmp_path / "mlc"):
        with MLCEngine(str(model), engine_config=EngineConfig(verbose=False)) as engine:
            ids.append((engine.tokenizer.encode_prompt("ab ba", bos=True), engine.tokenizer.decode([262, 260])))
    assert ids[0] == ids[1] == ids[2]
    given = answer(path, [5, 6, 7])
    assert given == answer(tmp_path / "hf", [5, 6, 7])
    assert len(given) == 16


def test_a_gguf_file_becomes_mlc_s(tmp_path: Path) -> None:
    path, values = mixed_gguf(tmp_path / "mixed.gguf")
    done = convert(path, tmp_path / "out", "q4f16_1")
    assert list(done.changes) == ["quantized to q4f16_1", "rounded to float16"]
    assert set(done.changes["rounded to float16"]) == {"float32"}
    directory = open_model_directory(tmp_path / "out")
    assert (directory.scheme, directory.model_type) == ("q4f16_1", "llama")
    scheme = SCHEMES["q4f16_1"]
    with directory.open_weights() as source:
        from windlass.models.registry import define_model

        specs = define_model("llama", directory.config, directory.config_path, dialect="mlc").program.weights
        for name, tensor in load_weights(specs, source):
            if name.endswith("down_proj.weight"):
                expected = quantize(values[name], scheme)
                assert np.array_equal(tensor.dequantize(), expected.dequantize())
                break
        else:
            raise AssertionError("no such weight")


@pytest.mark.parametrize("case", ["llama2", "llama-biases", "mistral", "qwen2", "qwen3"])
def test_floats_of_mlc_come_back_as_they_were(tmp_path: Path, case: str) -> None:
    model = CASES[case]
    source = write_hf_directory(model, tmp_path / "hf", dtype="F16")
    original = load_file(source / "model.safetensors")
    convert(source, tmp_path / "mlc", "q0f16")
    done = convert_to_hf(tmp_path / "mlc", tmp_path / "back", "f16")
    assert list(done.changes) == ["exact"]
    back = load_file(tmp_path / "back/model.safetensors")
    assert back.keys() == original.keys()
    assert all(np.array_equal(back[name], array) for name, array in original.items())
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (source, tmp_path / "back"))
    for key in ("hidden_size", "num_key_value_heads", "max_position_embeddings", "eos_token_id", "tie_word_embeddings"):
        assert theirs.get(key, False) == ours[key]
    directory = open_model_directory(tmp_path / "back")
    from windlass.models.registry import define_model

    again = define_model(directory.model_type, directory.config, directory.config_path, dialect="hf")
    first = define_model(ours["model_type"], ours, source, dialect="hf")
    assert again.program.weights == first.program.weights
    assert [str(op) for op in again.program.ops] == [str(op) for op in first.program.ops]


def test_codes_of_mlc_are_what_they_stand_for(tmp_path: Path) -> None:
    source = write_hf_directory(LLAMA, tmp_path / "hf")
    convert(source, tmp_path / "mlc", "q4f16_1")
    done = convert_to_hf(tmp_path / "mlc", tmp_path / "back", "f32")
    assert done.changes["exact"]["q4f16_1"] > 0
    back = load_file(tmp_path / "back/model.safetensors")
    for name, array in LLAMA.weights().items():
        if array.ndim == 2:
            assert np.array_equal(back[name], quantize(array, SCHEMES["q4f16_1"]).dequantize())
    assert convert_to_hf(tmp_path / "mlc", tmp_path / "half", "f16").changes["rounded to float16"] == {
        "q4f16_1": done.changes["exact"]["q4f16_1"]
    }


def test_large_models_get_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_writer, "SHARD_BYTES", 60_000)
    monkeypatch.setattr("windlass.serve.convert_to_hf._PIECE_NUMBERS", 100)
    path = write_gguf(tmp_path / "a.gguf", LLAMA.config, LLAMA.weights())
    convert_to_hf(path, tmp_path / "out", "f32")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in LLAMA.weights().values())
    tensors = {name: array for file in files for name, array in load_file(file).items()}
    assert all(np.array_equal(tensors[name], array) for name, array in LLAMA.weights().items())
    with open_model_directory(tmp_path / "out").open_weights() as source:
        assert source.names == tensors.keys()


def test_the_writer_wants_all_numbers_and_no_more(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path, [("a", (2, 2)), ("b", (1,))], Format.F32) as writer:
        writer.write(np.zeros((2, 2), np.float32))
        with pytest.raises(ValueError, match="tensors that were not written"):
            writer.finish()
        with pytest.raises(ValueError, match="8 bytes are more than the 4"):
            writer.write(np.zeros(2, np.float32))
        writer.write(np.zeros(1, np.float32))
        writer.finish()
        with pytest.raises(ValueError, match="4 bytes are more than the 0"):
            writer.write(np.zeros(1, np.float32))


def test_llama_3_s_rope_factors_get_their_names(tmp_path: Path) -> None:
    config = {"hidden_size": 256, "num_attention_heads": 4, "rope_theta": 500000.0}
    factors = Llama3Rope(500000.0, 64, 32.0, 1.0, 4.0, 8192).pair_factors()
    found = to_hugging_face({**config, "rope_pair_factors": factors}, tmp_path)
    assert found["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert "rope_pair_factors" not in found
    assert to_hugging_face(config, tmp_path) == config
    factors[3] = 2.0
    with pytest.raises(LoadError, match=r"rope_freqs\.weight has other factors than Llama 3's"):
        to_hugging_face({**config, "rope_pair_factors": factors}, tmp_path)


def test_what_is_refused(tmp_path: Path) -> None:
    source = write_hf_directory(LLAMA, tmp_path / "hf")
    with pytest.raises(LoadError, match="this is a Hugging Face directory already"):
        convert_to_hf(source, tmp_path / "out", "f16")
    with pytest.raises(ValueError, match="dtype must be one of f32, f16, bf16, not 'int8'"):
        convert_to_hf(source, tmp_path / "out", "int8")  # type: ignore[arg-type]
    for output in (source, tmp_path):
        with pytest.raises(LoadError, match="holds the model that is read"):
            convert(source, output, "q4f16_1", force=True)
    weights = {name: array.copy() for name, array in LLAMA.weights().items()}
    weights["model.norm.weight"][0] = 1e6
    path = write_gguf(tmp_path / "large.gguf", LLAMA.config, weights)
    with pytest.raises(LoadError, match=r"tensor model\.norm\.weight: a number is not finite or too large for f16"):
        convert_to_hf(path, tmp_path / "out", "f16")
    assert {file.name for file in tmp_path.iterdir()} == {"hf", "large.gguf"}


def test_force_replaces_a_model_and_nothing_else(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", LLAMA.config, LLAMA.weights())
    convert(path, tmp_path / "out", "q0f16")
    with pytest.raises(LoadError, match="exists and is not empty; --force replaces a model"):
        convert_to_hf(path, tmp_path / "out", "f32")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_to_hf(path, tmp_path / "out", "f32", force=True, progress=interrupt)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert {file.name for file in tmp_path.iterdir()} == {"a.gguf", "out"}
    convert_to_hf(path, tmp_path / "out", "f32", force=True)
    assert not (tmp_path / "out/mlc-chat-config.json").exists()
    assert (tmp_path / "out/model.safetensors").is_file()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/to-mother.txt").write_text("Dear mother")
    with pytest.raises(LoadError, match="holds something else than a model, and is not replaced"):
        convert(path, tmp_path / "letters", "q0f16", force=True)
    assert (tmp_path / "letters/to-mother.txt").read_text() == "Dear mother"


def test_the_old_model_stays_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("{}")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with (
        pytest.raises(LoadError, match="cannot be written: Input/output error"),
        new_directory(tmp_path / "source", tmp_path / "out", force=True) as part,
    ):
        (part / "config.json").write_text("new")
    assert (tmp_path / "out/config.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
