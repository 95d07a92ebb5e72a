"""What a model is and needs, before it is loaded: the same as when it is."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import pytest

from support.gguf_files import write_gguf
from support.model_caches import add_to_hub_cache, content
from support.tiny_embedding import EMBEDDING_CASES, write_embedding_directory
from support.tiny_models import CASES, write_hf_directory
from windlass import EngineConfig, LoadError, MLCEngine
from windlass.demo import model_directory
from windlass.serve import build
from windlass.serve.build import load_model
from windlass.serve.convert import convert
from windlass.serve.show import show_model
from windlass.weights.stored_models import stored_model

LLAMA = CASES["llama2"]


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MLC_LLM_HOME", str(tmp_path / "mlc"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("quantization", [None, "q4f16_1"])
def test_what_is_shown_is_what_is_loaded(quantization: str | None) -> None:
    shown = show_model(str(model_directory()), context=200, quantization=quantization)
    assert shown.problem is None
    memory = shown.memory
    assert memory is not None
    config = EngineConfig(mode="interactive", max_single_sequence_length=200, quantization=quantization)
    loaded = load_model("demo", model_directory(), config)
    executor: Any = loaded.executor
    assert memory.fits
    assert 0 <= executor.kv_cache_bytes - memory.kv_cache < mmap.PAGESIZE  # whole pages of the system
    assert memory.weights == pytest.approx(executor.weight_bytes, rel=0.02)
    assert (shown.context_length, memory.context) == (loaded.definition.context_length, 200)
    assert shown.stop_tokens == ("<|endoftext|>", "<|im_end|>")
    assert shown.tokenizer == "byte-level (tokenizer.json)"
    assert (shown.takes_tools, shown.thinks, shown.template_origin) == (True, False, "tokenizer_config.json")
    assert shown.parameters == 869760
    loaded.close()


def test_it_fits_exactly_when_the_engine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    need = show_model(str(model_directory())).memory
    assert need is not None
    assert need.context == 1024
    usable = need.weights + need.kv_cache // 2 + 100
    for module in (build, "windlass.serve.show"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.available_bytes", lambda: int(usable / 0.85) + 1)
    memory = show_model(str(model_directory())).memory
    assert memory is not None
    assert (memory.fits, memory.longest_context) == (False, 512)
    for context, fits in ((512, True), (513, False)):
        shown = show_model(str(model_directory()), context=context).memory
        assert shown is not None
        assert shown.fits == fits
        config = EngineConfig(mode="interactive", max_single_sequence_length=context)
        if fits:
            MLCEngine(engine_config=config).terminate()
        else:
            with pytest.raises(ValueError, match="a KV cache for 513 tokens takes"):
                MLCEngine(engine_config=config)
    monkeypatch.setattr("windlass.serve.build.available_bytes", lambda: 1 << 20)
    memory = show_model(str(model_directory())).memory
    assert memory is not None
    assert (memory.fits, memory.longest_context) == (False, 0)


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="the model's context is 1024 tokens, not 1025"):
        show_model(str(model_directory()), context=1025)
    with pytest.raises(LoadError, match="there is no such model on this machine"):
        show_model("org/nothing")


def test_a_gguf_file(tmp_path: Path) -> None:
    weights = LLAMA.weights()
    write_gguf(tmp_path / "a.gguf", LLAMA.config, weights)
    shown = show_model("a.gguf")
    assert shown.problem is None
    assert shown.listed.architecture == "llama"
    assert shown.listed.quantization == "float32"
    assert shown.tensor_types == {"float32": sum(array.size for array in weights.values() if array.ndim > 1)}
    assert shown.parameters == sum(array.size for array in weights.values())
    assert shown.tokenizer == "byte fallback (llama)"
    assert shown.template is None
    assert shown.licence is None


def test_an_mlc_directory(tmp_path: Path) -> None:
    convert(model_directory(), tmp_path / "mlc-model", "q4f16_1", conv_template="chatml")
    shown = show_model("mlc-model")
    assert (shown.listed.quantization, shown.listed.model.kind) == ("q4f16_1", "mlc")
    assert shown.template_origin == "mlc-chat-config.json"
    assert json.loads(shown.template or "")["name"] == "chatml"


def test_a_model_for_embeddings(tmp_path: Path) -> None:
    write_embedding_directory(EMBEDDING_CASES["qwen3-embedding"], tmp_path / "embedding", pooling="last")
    shown = show_model("embedding")
    assert (shown.problem, shown.pooling) == (None, "last")
    assert shown.memory is not None
    assert shown.memory.fits


def test_models_that_cannot_be_run(tmp_path: Path) -> None:
    write_hf_directory(LLAMA, tmp_path / "unknown", extra={"model_type": "mamba"})
    shown = show_model("unknown")
    assert shown.listed.architecture == "mamba"
    assert "model_type 'mamba' is not supported; supported: " in (shown.problem or "")
    assert shown.memory is None
    write_hf_directory(LLAMA, tmp_path / "shards", shards=3)
    (tmp_path / "shards/model-00002-of-00003.safetensors").unlink()
    assert show_model("shards").problem == "files are missing: model-00002-of-00003.safetensors"
    (tmp_path / "bad.gguf").write_bytes(b"no such file")
    assert "no GGUF file, or a damaged one" in (show_model("bad.gguf").problem or "")
    blobs = tmp_path / "hub/models--org--big/blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.incomplete").write_bytes(b"1234")
    assert "the download was interrupted; `windlass pull` goes on" in (show_model("org/big").problem or "")


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# Words", "apache-2.0"),
        ('---\ntags:\n- x\nlicense: "mit"  # yes\n---\n', "mit"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense: other\n---\n", None),
        ("---\ntags: x\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\nlicense: mit", None),
        ("", None),
    ],
)
def test_licences_of_model_cards(tmp_path: Path, readme: str, licence: str | None) -> None:
    snapshot = add_to_hub_cache(
        tmp_path / "hub",
        "org/name",
        {**content(write_hf_directory(LLAMA, tmp_path / "x")), "README.md": readme.encode()},
    )
    shown = show_model("org/name")
    assert shown.licence == licence
    assert stored_model(str(snapshot), {"huggingface": tmp_path / "hub"}).name == "org/name"


def test_licences_in_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = build.open_model
    config = {**json.loads((model_directory() / "config.json").read_text()), "license": "mit"}
    write_gguf(tmp_path / "a.gguf", LLAMA.config, LLAMA.weights())

    def with_licence(*arguments: Any, **named: Any) -> Any:
        opened = read(*arguments, **named)
        if opened.gguf is not None:
            opened.gguf.metadata["general.license"] = "apache-2.0"
        return opened

    monkeypatch.setattr(build, "open_model", with_licence)
    assert show_model("a.gguf").licence == "apache-2.0"
    for file in model_directory().iterdir():
        (tmp_path / "demo").mkdir(exist_ok=True)
        (tmp_path / "demo" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "demo/config.json").write_text(json.dumps(config))
    assert show_model("demo").licence == "mit"
