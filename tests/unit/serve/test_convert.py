"""``convert``: what it writes, byte for byte where it matters, and that it writes all or nothing."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from support.tiny_models import CASES, write_hf_directory, write_tensors
from support.weight_files import open_in
from windlass.errors import LoadError
from windlass.quantization import SCHEMES, mlc_pack, quantize
from windlass.serve.convert import convert
from windlass.text.text_model import TextModel
from windlass.weights import MlcWriter, open_model_directory

LLAMA = CASES["llama2"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    """A byte-level BPE without merges: 256 bytes, then three special tokens."""
    vocab = {character: number for number, character in enumerate(sorted(ByteLevel.alphabet()))}
    special = [
        {"id": 256 + number, "content": content, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, content in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "dropout": None, "unk_token": None},
        **changes,
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small Llama with tokenizer, ChatML template and generation settings."""
    path = write_hf_directory(LLAMA, tmp_path / "hf", dtype="BF16", extra={"bos_token_id": 256, "eos_token_id": 258})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    names = {"eos_token": "<|im_end|>", "chat_template": CHATML}
    (path / "tokenizer_config.json").write_text(json.dumps(names))
    generation = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "eos_token_id": [258, 256], "pad_token_id": 256}
    (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def chat_config(directory: Path) -> Any:
    return json.loads((directory / "mlc-chat-config.json").read_text(encoding="utf-8"))


def test_the_configuration(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", "q4f16_1")
    config = chat_config(tmp_path / "out")
    model_config = config.pop("model_config")
    conversation = config.pop("conv_template")
    assert config == {
        "version": "0.1.0",
        "model_type": "llama",
        "quantization": "q4f16_1",
        "vocab_size": 307,
        "active_vocab_size": 259,
        "context_window_size": 256,
        "sliding_window_size": -1,
        "prefill_chunk_size": 256,
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "temperature": 0.6,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "top_p": 0.9,
        "top_k": 20,
        "pad_token_id": 256,
        "bos_token_id": 256,
        "eos_token_id": [256, 258],
        "tokenizer_files": ["tokenizer.json", "tokenizer_config.json"],
        "tokenizer_info": {
            "token_postproc_method": "byte_level",
            "prepend_space_in_encode": False,
            "strip_space_in_decode": False,
        },
        "model_task": "chat",
        "embedding_metadata": None,
    }
    assert model_config["hidden_size"] == 64
    assert model_config["position_embedding_base"] == 10000
    assert conversation["roles"]["user"] == "<|im_start|>user"
    assert conversation["stop_token_ids"] == [258]


def test_the_text_side_is_the_same(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", "q4f16_1")
    sides = []
    for path in (source, tmp_path / "out"):
        directory = open_model_directory(path)
        sides.append(TextModel.load(path, directory.config, directory.mlc))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|>"}]
    assert sides[0].encode_chat(messages) == sides[1].encode_chat(messages)
    assert sides[0].stop_token_ids == sides[1].stop_token_ids == {256, 258}
    assert sides[1].defaults.temperature == 0.6
    assert sides[1].defaults.top_k == 20


def test_the_files(source: Path, tmp_path: Path) -> None:
    (source / "pytorch_model.bin").write_bytes(b"not looked at")
    convert(source, tmp_path / "out", "q4f16_1")
    names = {"mlc-chat-config.json", "tensor-cache.json", "params_shard_0.bin", "tokenizer.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "tokenizer_config.json"}
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    table = json.loads((tmp_path / "out/tensor-cache.json").read_text())
    names = {record["name"] for record in table["records"][0]["records"]}
    layer = {
        f"model.layers.0.{name}"
        for name in (
            "input_layernorm.weight",
            "self_attn.qkv_proj.q_weight",
            "self_attn.qkv_proj.q_scale",
            "self_attn.o_proj.q_weight",
            "self_attn.o_proj.q_scale",
            "post_attention_layernorm.weight",
            "mlp.gate_up_proj.q_weight",
            "mlp.gate_up_proj.q_scale",
            "mlp.down_proj.q_weight",
            "mlp.down_proj.q_scale",
        )
    }
    ends = {f"{name}.{part}" for name in ("model.embed_tokens", "lm_head") for part in ("q_weight", "q_scale")}
    assert names == layer | {name.replace("layers.0", "layers.1") for name in layer} | ends | {"model.norm.weight"}
    parameters = sum(array.size for array in LLAMA.weights().values())
    metadata = table["metadata"]
    assert metadata["ParamSize"] == len(names)
    assert metadata["ParamBytes"] == table["records"][0]["nbytes"]
    assert metadata["BitsPerParam"] == pytest.approx(metadata["ParamBytes"] * 8 / parameters)


@pytest.mark.parametrize("name", ["q4f16_0", "q3f16_1"])
def test_a_weight_byte_for_byte(source: Path, tmp_path: Path, name: str) -> None:
    convert(source, tmp_path / "out", name)
    gate, up = (LLAMA.weights()[f"model.layers.1.mlp.{part}_proj.weight"] for part in ("gate", "up"))
    stored = (np.concatenate([gate, up]).view(np.uint32) + 0x8000 >> 16).astype(np.uint32) << 16  # bfloat16, no ties
    words, scales = mlc_pack(quantize(stored.view(np.float32), SCHEMES[name]), SCHEMES[name])
    with open_model_directory(tmp_path / "out").open_weights() as weights:
        assert np.array_equal(weights.read("model.layers.1.mlp.gate_up_proj.q_weight"), words)
        assert np.array_equal(weights.read("model.layers.1.mlp.gate_up_proj.q_scale"), scales)


def test_a_chosen_conversation_template(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", "q4f16_1", conv_template="llama-2")
    assert chat_config(tmp_path / "out")["conv_template"]["name"] == "llama-2"
    with pytest.raises(LoadError, match="unknown template 'llama-99'"):
        convert(source, tmp_path / "other", "q4f16_1", conv_template="llama-99")
    assert not (tmp_path / "other").exists()


def test_a_template_without_an_equal_comes_along(source: Path, tmp_path: Path) -> None:
    odd = "{% for m in messages %}{{ loop.index }}:{{ m.content | upper }}{% endfor %}"
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (source / "chat_template.jinja").write_text(odd)
    convert(source, tmp_path / "out", "q4f16_1")
    assert "conv_template" not in chat_config(tmp_path / "out")
    assert (tmp_path / "out/chat_template.jinja").read_text() == odd


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    source = write_hf_directory(LLAMA, tmp_path / "hf")
    convert(source, tmp_path / "out", "q0f16")
    config = chat_config(tmp_path / "out")
    assert config["active_vocab_size"] == 307
    assert config["tokenizer_files"] == []
    assert "conv_template" not in config
    assert (config["temperature"], config["bos_token_id"], config["eos_token_id"]) == (1.0, 1, 2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"decoder": {"type": "Fuse"}}, ("byte_fallback", False, False)),
        ({"decoder": {"type": "ByteFallback"}}, ("byte_fallback", False, False)),
        (
            {
                "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
                "decoder": {
                    "type": "Sequence",
                    "decoders": [
                        {"type": "ByteFallback"},
                        {"type": "Fuse"},
                        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                    ],
                },
            },
            ("byte_fallback", True, True),
        ),
        ({"normalizer": {"type": "Prepend", "prepend": "_"}}, ("byte_level", False, False)),
    ],
)
def test_tokenizer_info(source: Path, tmp_path: Path, changes: Any, expected: tuple[str, bool, bool]) -> None:
    (source / "tokenizer.json").write_text(json.dumps(tokenizer_json(**changes)))
    convert(source, tmp_path / "out", "q0f16")
    assert tuple(chat_config(tmp_path / "out")["tokenizer_info"].values()) == expected


def test_progress_reaches_the_end(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    convert(source, tmp_path / "out", "q4f16_1", progress=lambda *told: seen.append(told))
    assert seen[-1][1] == seen[-1][2] == sum(2 * array.size for array in LLAMA.weights().values())


def test_an_empty_output_is_used_and_others_are_not(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty", "q4f16_1")
    assert (tmp_path / "empty/mlc-chat-config.json").is_file()
    with pytest.raises(LoadError, match="exists and is not empty"):
        convert(source, tmp_path / "empty", "q4f16_1")
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadError, match="there is a file of this name"):
        convert(source, tmp_path / "file", "q4f16_1")


def test_outputs_are_made_with_their_parents_and_usual_permissions(source: Path, tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        convert(source, tmp_path / "a/b/out", "q4f16_1")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a/b/out").stat().st_mode) == 0o755


def test_relative_outputs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    convert(source.relative_to(tmp_path), Path("out"), "q4f16_1")
    assert (tmp_path / "out/mlc-chat-config.json").is_file()


def test_bad_arguments(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'q4' is not supported; supported: q0f16"):
        convert(source, tmp_path / "out", "q4")
    with pytest.raises(LoadError, match="there is no such directory"):
        convert(tmp_path / "nowhere", tmp_path / "out", "q4f16_1")
    convert(source, tmp_path / "mlc", "q4f16_1")
    with pytest.raises(LoadError, match="an MLC directory already, stored as q4f16_1"):
        convert(tmp_path / "mlc", tmp_path / "out", "q8f16_1")
    assert not (tmp_path / "out").exists()


def entries(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_nothing_is_left_of_a_failure(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = LLAMA.weights()
    weights["model.layers.1.mlp.down_proj.weight"][3, 3] = np.nan
    broken = write_hf_directory(LLAMA, tmp_path / "broken")
    write_tensors(broken, weights)
    before = entries(tmp_path)
    with pytest.raises(LoadError, match=r"model\.layers\.1\.mlp\.down_proj\.weight: a number is not finite"):
        convert(broken, tmp_path / "out", "q4f16_1")
    assert entries(tmp_path) == before
    assert open_in(tmp_path) == (0, 0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MlcWriter, "finish", full)
    with pytest.raises(LoadError, match="cannot be written: No space left on device"):
        convert(source, tmp_path / "out", "q4f16_1")
    assert entries(tmp_path) == before


def test_an_interrupt_leaves_nothing(source: Path, tmp_path: Path) -> None:
    before = entries(tmp_path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", "q4f16_1", progress=interrupt)
    assert entries(tmp_path) == before
    assert open_in(tmp_path) == (0, 0)


def test_float32_that_bfloat16_cannot_hold_names_its_tensor(tmp_path: Path) -> None:
    weights = {name: array.copy() for name, array in LLAMA.weights().items()}
    weights["model.norm.weight"][0] = np.finfo(np.float32).max
    source = write_hf_directory(LLAMA, tmp_path / "hf")
    write_tensors(source, weights)
    with pytest.raises(LoadError, match=r"tensor model\.norm\.weight: .* too large for bf16"):
        convert(source, tmp_path / "out", "q0f32")
