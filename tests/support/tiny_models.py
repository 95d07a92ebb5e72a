"""Small random models of every architecture, the same on every machine, and Hugging Face directories made of them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.tiny_dense import DENSE_CONFIGS, DENSE_TYPES, dense_shapes
from support.tiny_layer_norm import LAYER_NORM_CONFIGS, LAYER_NORM_TYPES, layer_norm_shapes
from support.tiny_moe import MOE_CONFIGS, MOE_SHAPES
from windlass.program.program import Part, Program, RowOrder
from windlass.quantization.tensor import Format, Tensor, f32_to_bf16

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class TinyModel:
    """A config.json and the seed of the weights that go with it."""

    name: str
    config: Mapping[str, Any]
    seed: int

    def weights(self) -> dict[str, F32]:
        """The tensors by their Hugging Face names, in file order."""
        generator = np.random.PCG64(self.seed)
        # Logits of standard deviation 3: clear winners, and tied models do not echo themselves. Gemma scales its own.
        embedding = 0.15 if self.config["model_type"].startswith("gemma") else 0.4
        shapes = tensor_shapes(self.config)
        return {name: _draw(generator, name, shape, embedding) for name, shape in shapes.items()}

    def digest(self) -> str:
        """A hash of configuration and weights: golden files name the model they were made from by it."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name, array in self.weights().items():
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint of this configuration has, written down apart from the model files under test."""
    if config["model_type"] in DENSE_TYPES:
        return dense_shapes(config)
    if config["model_type"] in MOE_SHAPES:
        return MOE_SHAPES[config["model_type"]](config)
    if config["model_type"] == "bert":
        from support.tiny_embedding import bert_shapes  # which has models of this file too

        return bert_shapes(config)
    if config["model_type"] in LAYER_NORM_TYPES:
        return layer_norm_shapes(config)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    qwen3 = config["model_type"] == "qwen3"
    qkv_bias = config.get("attention_bias", False) or config["model_type"] == "qwen2"
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        shapes[f"{block}.input_layernorm.weight"] = (hidden,)
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"{block}.self_attn.{name}_proj.weight"] = (rows, hidden)
            if qkv_bias:
                shapes[f"{block}.self_attn.{name}_proj.bias"] = (rows,)
        if qwen3:
            shapes[f"{block}.self_attn.q_norm.weight"] = (head_dim,)
            shapes[f"{block}.self_attn.k_norm.weight"] = (head_dim,)
        shapes[f"{block}.self_attn.o_proj.weight"] = (hidden, queries)
        if config.get("attention_bias", False):
            shapes[f"{block}.self_attn.o_proj.bias"] = (hidden,)
        shapes[f"{block}.post_attention_layernorm.weight"] = (hidden,)
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            shapes[f"{block}.mlp.{name}_proj.weight"] = (rows, columns)
            if config.get("mlp_bias", False):
                shapes[f"{block}.mlp.{name}_proj.bias"] = (rows,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def uniform(generator: np.random.PCG64, count: int) -> NDArray[np.float64]:
    """Numbers of mean 0 and variance 1, made of the generator's raw bits, which numpy promises never to change."""
    raw = np.asarray(generator.random_raw(count), dtype=np.uint64)
    return ((raw >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0) * math.sqrt(3.0)


def _draw(generator: np.random.PCG64, name: str, shape: tuple[int, ...], embedding: float) -> F32:
    unit = uniform(generator, math.prod(shape))
    if re.search(r"[nN]orm(\.norms\.\d+)?\.weight$|\bln_\w\.weight$", name):
        values = 1.0 + 0.2 * unit
    elif name.endswith((".bias", "_bias", ".sinks")):
        values = 0.3 * unit
    elif re.search(r"embed_tokens|lm_head|\bwte\b|embed_in|embed_out|_embeddings\b", name):
        values = embedding * unit
    else:
        values = 1.6 / math.sqrt(shape[1]) * unit
    return values.astype(np.float32).reshape(shape)


def _config(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 307,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        **changes,
    }


def _llama(**changes: Any) -> dict[str, Any]:
    return _config("llama", "LlamaForCausalLM", **changes)


CASES = {
    model.name: model
    for model in (
        TinyModel("llama2", _llama(num_key_value_heads=4, rope_scaling=None), seed=1),
        TinyModel(
            "llama3-tied",
            _llama(num_attention_heads=8, tie_word_embeddings=True, rope_theta=500000.0, num_hidden_layers=3),
            seed=102,
        ),
        TinyModel(
            "llama3.1-rope",
            _llama(
                rope_theta=500000.0,
                rope_scaling={
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            ),
            seed=103,
        ),
        TinyModel("llama-linear", _llama(rope_scaling={"type": "linear", "factor": 4.0}), seed=304),
        TinyModel(
            "llama-dynamic",
            _llama(max_position_embeddings=64, rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
            seed=305,
        ),
        TinyModel(
            "llama-yarn",
            _llama(
                max_position_embeddings=128,
                rope_scaling={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                    "beta_fast": 4.0,
                    "beta_slow": 0.5,
                },
            ),
            seed=506,
        ),
        TinyModel("llama-biases", _llama(attention_bias=True, mlp_bias=True), seed=407),
        TinyModel("mistral", _config("mistral", "MistralForCausalLM", head_dim=32, sliding_window=24), seed=208),
        TinyModel(
            "qwen2",
            _config(
                "qwen2",
                "Qwen2ForCausalLM",
                hidden_size=72,
                num_attention_heads=6,
                rms_norm_eps=1e-6,
                tie_word_embeddings=True,
                use_sliding_window=False,
                sliding_window=16,
                max_window_layers=1,
            ),
            seed=109,
        ),
        TinyModel(
            "qwen2-window",
            _config(
                "qwen2",
                "Qwen2ForCausalLM",
                num_hidden_layers=3,
                use_sliding_window=True,
                sliding_window=20,
                max_window_layers=1,
            ),
            seed=110,
        ),
        TinyModel(
            "qwen3",
            {
                key: value
                for key, value in _config(
                    "qwen3",
                    "Qwen3ForCausalLM",
                    head_dim=24,
                    attention_bias=False,
                    tie_word_embeddings=True,
                    rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                    layer_types=["full_attention", "full_attention"],
                    use_sliding_window=False,
                    sliding_window=None,
                    max_window_layers=2,
                ).items()
                if key != "rope_theta"
            },
            seed=111,
        ),
        *(TinyModel(name, config, seed) for name, config, seed in (*DENSE_CONFIGS, *MOE_CONFIGS, *LAYER_NORM_CONFIGS)),
    )
}
"""Every architecture and every rope type; sizes that no vector width divides."""


def program_weights(program: Program, tensors: Mapping[str, F32]) -> dict[str, Tensor]:
    """Stack the Hugging Face tensors into the program's weights."""
    result = {}
    for spec in program.weights:
        data = np.concatenate([_prepared(tensors[part.name], part, len(spec.shape)) for part in spec.parts])
        assert data.shape == spec.shape, f"{spec.name}: {data.shape} is not {spec.shape}"
        result[spec.name] = Tensor(Format.F32, spec.shape, data)
    return result


def _prepared(array: F32, part: Part, axes: int) -> F32:
    """What ``Part`` says, written down apart from the loader."""
    if part.matrices is not None:
        array = _runs(array, part.matrices)
    if part.transposed:
        array = np.moveaxis(array, -1, -2)
    array = array.reshape(-1, *array.shape[1 + array.ndim - axes :])
    if part.rows is not None:
        array = _runs(array, part.rows).reshape(-1, *array.shape[1:])
    return array + np.float32(part.plus)


def _runs(array: F32, order: RowOrder) -> F32:
    """The rows taken, [runs, rows of a run, ...]."""
    runs = array.reshape(order.groups, -1, *array.shape[1:])
    return np.concatenate([runs[:, start:stop:step] for start, stop, step in order.slices], axis=1)


def write_hf_directory(
    model: TinyModel, path: Path, *, shards: int = 1, dtype: str = "F32", extra: Mapping[str, Any] | None = None
) -> Path:
    """Write config.json and model.safetensors, or ``shards`` of them with an index; return ``path``.

    ``dtype`` is F32, F16 or BF16; ``extra`` changes keys of config.json.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**model.config, **(extra or {})}, indent=2))
    write_tensors(path, model.weights(), shards=shards, dtype=dtype)
    return path


def write_tensors(path: Path, tensors: Mapping[str, F32], *, shards: int = 1, dtype: str = "F32") -> None:
    """Write tensors into the directory ``path``, dealt out in turn to ``shards`` files when there are several."""
    if shards == 1:
        write_safetensors(path / "model.safetensors", tensors, dtype=dtype)
        return
    names = list(tensors)
    files = {f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
    for file, members in files.items():
        write_safetensors(path / file, {name: tensors[name] for name in members}, dtype=dtype)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: file for file, members in files.items() for name in members},
    }
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def write_safetensors(file: Path, tensors: Mapping[str, F32], *, dtype: str = "F32") -> None:
    """Write one file: 8 bytes with the header's length, the header in JSON, the tensors one after the other."""
    convert = {"F32": lambda x: x, "F16": lambda x: x.astype(np.float16), "BF16": f32_to_bf16}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, end = [], 0
    for name, tensor in tensors.items():
        blob = np.ascontiguousarray(convert(tensor)).tobytes()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + len(blob)]}
        blobs.append(blob)
        end += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))
