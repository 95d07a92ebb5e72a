"""What a GGUF file says besides its weights, as the files of a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from windlass.errors import LoadError
from windlass.models.gguf_config import to_hugging_face
from windlass.serve.opened import OpenedModel
from windlass.text.gguf_token_ids import read_stop_ids
from windlass.text.gguf_tokenizer import gguf_tokenizer_files
from windlass.weights.directory import HF_CONFIG_NAME, ModelDirectory

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Those whose weights are stored in Hugging Face's directories as in GGUF files, and as the program has them."""

_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
_TEMPLATE = "tokenizer.chat_template"


def write_hugging_face_texts(opened: OpenedModel, target: Path) -> ModelDirectory:
    """Write config.json, tokenizer, chat template and end tokens of an open GGUF model to the directory ``target``.

    Raises:
        LoadError: there is something that a Hugging Face directory cannot say.
        OSError: a file cannot be written.
    """
    if opened.gguf is None:
        raise ValueError("the model is no GGUF file")
    check_family(opened)
    metadata = opened.gguf.metadata
    tokenizer, tokenizer_config = gguf_tokenizer_files(opened.path, metadata)
    vocabulary = len(metadata["tokenizer.ggml.tokens"])
    found = {name: metadata.get(f"tokenizer.ggml.{key}") for name, key in _IDS.items()}
    ids = {name: value for name, value in found.items() if isinstance(value, int) and value < vocabulary}
    config = {"model_type": opened.model_type, **to_hugging_face(opened.config, opened.path), **ids}
    if isinstance(metadata.get("general.license"), str):
        config["license"] = metadata["general.license"]
    if tokenizer_config["add_bos_token"] and "bos_token" in tokenizer_config:
        # Where Hugging Face's tokenizers have it, which do not all read the setting.
        tokenizer = {**tokenizer, "post_processor": _bos_first(tokenizer_config["bos_token"], ids["bos_token_id"])}
    stops = sorted(read_stop_ids(opened.path, metadata, vocabulary))
    _write_json(target / HF_CONFIG_NAME, config)
    _write_json(target / "tokenizer.json", tokenizer)
    _write_json(target / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer_config})
    _write_json(target / "generation_config.json", {**ids, **({"eos_token_id": stops} if stops else {})})
    template = metadata.get(_TEMPLATE)
    if isinstance(template, str):
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")
        for key, text in metadata.items():
            name = key.removeprefix(f"{_TEMPLATE}.")
            if name != key and name.isidentifier() and isinstance(text, str):
                folder = target / "additional_chat_templates"
                folder.mkdir(exist_ok=True)
                (folder / f"{name}.jinja").write_text(text, encoding="utf-8")
    return ModelDirectory(target, "hf", opened.model_type, config)


def check_family(opened: OpenedModel) -> None:
    """Raise LoadError unless the weights of the model's family are alike in all formats."""
    if opened.model_type not in FAMILIES:
        reason = f"models of the family {opened.model_type} are not converted from or to this format"
        raise LoadError(opened.path, f"{reason}; supported: {', '.join(FAMILIES)}")


def _bos_first(token: str, token_id: int) -> dict[str, Any]:
    """The post-processor of a tokenizer.json that puts a token before every text."""
    special, first, second = ({"SpecialToken": {"id": token, "type_id": 0}}, _text("A", 0), _text("B", 1))
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _text(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
