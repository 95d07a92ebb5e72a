"""GGUF files of the tiny models for embeddings, as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path

import gguf

from support.gguf_files import add_tokenizer, begin_gguf, end_gguf, gguf_name
from support.tiny_embedding import EMBEDDING_CASES

PIECES = {"[PAD]": 3, "[UNK]": 3, "[CLS]": 3, "[SEP]": 3, "\u2581sea": 1, "\u2581the": 1, "s": 1, "\u2581[unused1]": 1}
"""BERT's vocabulary with the space that GGUF gives to the pieces that begin a word, and the types."""


def write_embedding_gguf(path: Path, name: str, *, pooling: gguf.PoolingType) -> Path:
    """Write a model of ``tiny_embedding``; the decoder puts its EOS behind a text, as Qwen3-Embedding does."""
    model = EMBEDDING_CASES[name]
    is_bert = model.config["model_type"] == "bert"
    writer = begin_gguf(path, model.config["model_type"], model.config, tokenizer=not is_bert)
    writer.add_pooling_type(pooling)
    if is_bert:
        _add_word_pieces(writer, model.config["vocab_size"])
        writer.add_layer_norm_eps(model.config["layer_norm_eps"])
        writer.add_causal_attention(False)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, model.config["num_hidden_layers"])
    else:
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(True)
    for tensor, data in model.weights().items():
        own = names.get_name(tensor, try_suffixes=(".weight", ".bias")) if is_bert else gguf_name(tensor)
        assert own is not None, tensor
        writer.add_tensor(own, data)
    return end_gguf(writer, path)


def _add_word_pieces(writer: gguf.GGUFWriter, size: int) -> None:
    tokens = [*PIECES, *(f"\u2581<{number}>" for number in range(size - len(PIECES)))]
    add_tokenizer(writer, "bert", tokens, [*PIECES.values(), *[1] * (size - len(PIECES))])
    writer.add_token_type_count(2)
    writer.add_unk_token_id(1)
    writer.add_sep_token_id(3)
    writer.add_pad_token_id(0)
