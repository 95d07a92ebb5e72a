"""Tiny models for embeddings, and directories of them as sentence-transformers writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.text_files import byte_level_tokenizer, write_json
from support.tiny_models import CASES, TinyModel, write_tensors

BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "type_vocab_size": 2,
    "vocab_size": 307,
}
EMBEDDING_CASES = {"bert-embedding": TinyModel("bert-embedding", BERT, seed=611), "qwen3-embedding": CASES["qwen3"]}
"""An encoder whose tokens all see each other, and a decoder without its head."""

MODES = {
    "last": {"pooling_mode_lasttoken": True},
    "cls": {"pooling_mode_cls_token": True},
    "mean": {"pooling_mode_mean_tokens": True},
}
CLS, SEP = 258, 259
"""Ids that the tokenizer puts around a text."""


def bert_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a BERT without its heads, in file order."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
    }

    def norm(name: str) -> None:
        shapes[f"{name}.LayerNorm.weight"] = shapes[f"{name}.LayerNorm.bias"] = (width,)

    norm("embeddings")
    for layer in range(config["num_hidden_layers"]):
        block = f"encoder.layer.{layer}"
        for name, outputs, inputs in (
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", inner, width),
            ("output.dense", width, inner),
        ):
            shapes |= {f"{block}.{name}.weight": (outputs, inputs), f"{block}.{name}.bias": (outputs,)}
        norm(f"{block}.attention.output")
        norm(f"{block}.output")
    return shapes


def write_embedding_directory(
    case: TinyModel, path: Path, *, pooling: str = "mean", normalize: bool = True, prefix: str = ""
) -> Path:
    """Write a directory; the names of its tensors begin with ``prefix`` instead of ``model.``. Return ``path``."""
    (path / "1_Pooling").mkdir(parents=True)
    tensors = {prefix + name.removeprefix("model."): array for name, array in case.weights().items()}
    write_tensors(path, {name: array for name, array in tensors.items() if not name.endswith("lm_head.weight")})
    around = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]")]
    processor = {
        "type": "TemplateProcessing",
        "single": [around[0], {"Sequence": {"id": "A", "type_id": 0}}, around[1]],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (("[CLS]", CLS), ("[SEP]", SEP))
        },
    }
    kinds = ["Transformer", "Pooling", "Normalize"][: 3 if normalize else 2]
    modules = [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}" if index else "", "type": f"x.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    tokenizer = byte_level_tokenizer(("[CLS]", "[SEP]"), post_processor=processor)
    write_json(path, config=case.config, tokenizer=tokenizer, modules=modules)
    write_json(path / "1_Pooling", config={"word_embedding_dimension": 64, **MODES[pooling]})
    return path
