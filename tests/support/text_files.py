"""Tokenizer files small enough to read: every byte a token, a few merges, a few special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from windlass.text.byte_decoding import byte_level_alphabet

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def added_token(token_id: int, content: str, **flags: bool) -> dict[str, Any]:
    """An entry of ``added_tokens``; special unless told."""
    kept = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **kept, **flags}


def byte_level_tokenizer(
    specials: Iterable[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), **changes: Any
) -> dict[str, Any]:
    """A tokenizer.json in GPT-2's way: ids 0 to 255 are the bytes, then ``he`` and ``Ġhe``, then the special tokens."""
    vocab = {**byte_level_alphabet(), "he": 256, "Ġhe": 257}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(258 + index, content) for index, content in enumerate(specials)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocab, ["h e", "Ġ he"]),
        **changes,
    }


def sentencepiece_tokenizer(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json in Llama's way: three special tokens, 256 byte tokens, then ``▁`` and some letters."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in ["▁", *"abcdefghijklmnopqrstuvwxyz", "he", "▁he"]:
        vocab[piece] = len(vocab)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(index, text) for index, text in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": byte_fallback_bpe(vocab, ["h e", "▁ he"]),
        **changes,
    }


def metaspace_tokenizer(scheme: str) -> dict[str, Any]:
    """As ``sentencepiece_tokenizer``, with the newer Metaspace pre-tokenizer and its ``prepend_scheme``."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    steps = [{"type": "ByteFallback"}, metaspace]
    return sentencepiece_tokenizer(
        normalizer=None, pre_tokenizer=metaspace, decoder={"type": "Sequence", "decoders": steps}
    )


def bos_processor(bos: str, bos_id: int) -> dict[str, Any]:
    """A post-processor that puts ``bos`` before a text."""
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def write_json(directory: Path, **files: Any) -> Path:
    """Write each value as ``<name>.json``; return ``directory``."""
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return directory


def byte_fallback_bpe(vocab: Mapping[str, int], merges: Sequence[str | list[str]]) -> dict[str, Any]:
    """The ``model`` of a tokenizer.json in Llama's way."""
    return _bpe(vocab, merges) | {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}


def _bpe(vocab: Mapping[str, int], merges: Sequence[str | list[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocab),
        "merges": merges,
    }
