"""Model directories with random weights in real shapes: speed does not depend on values."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comparison.shapes import Shape
from windlass.quantization import f32_to_bf16

DEVIATION = 0.02
_BLOCK = 1 << 22
_RESERVED = 256
"""Ids at the end of a vocabulary that are kept for special tokens and padding."""
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def default_tokenizer() -> Path | None:
    """A real tokenizer.json among the test data, if that is there."""
    data = os.environ.get("WINDLASS_TEST_DATA")
    path = Path(data) / "tokenizers" / "qwen2" / "tokenizer.json" if data else None
    return path if path is not None and path.is_file() else None


Values = Callable[[str, tuple[int, ...]], Iterator[NDArray[np.float32]]]
"""What stands in a tensor of some name and shape, piece by piece."""


def random_values(generator: np.random.Generator) -> Values:
    """Norms of one, and all else normal with ``DEVIATION``."""

    def values(name: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
        left = math.prod(shape)
        while left:
            count = min(left, _BLOCK)
            if name.endswith("norm.weight"):
                yield np.ones(count, dtype=np.float32)
            else:
                yield generator.standard_normal(count, dtype=np.float32) * np.float32(DEVIATION)
            left -= count

    return values


def make_model(
    shape: Shape,
    directory: Path,
    tokenizer: Path | None,
    progress: Callable[[int, int], None] = lambda *_: None,
    values: Values | None = None,
) -> None:
    """Write a Hugging Face directory: config, bf16 weights, tokenizer with a chat template.

    Args:
        directory: made whole or not at all; must not exist.
        tokenizer: tokenizer.json of a byte-level BPE, which is cut to the shape's vocabulary. None makes one that
            knows single bytes only, so that a text prompt measures no tokenizer worth the name.
        progress: told (bytes written, bytes of the whole).
        values: what the weights are; random ones by default.
    """
    partial = directory.with_name(directory.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    definition = bytes_tokenizer() if tokenizer is None else json.loads(tokenizer.read_text(encoding="utf-8"))
    definition = fit_tokenizer(definition, shape.vocab_size)
    _write_json(partial / "tokenizer.json", definition)
    ids = {token["content"]: token["id"] for token in definition["added_tokens"]}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": shape.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "chat_template": _TEMPLATE,
    }
    _write_json(partial / "tokenizer_config.json", config)
    special = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    _write_json(partial / "config.json", {**shape.config(), **special})
    _write_json(partial / "generation_config.json", special)
    values = values or random_values(np.random.default_rng(0))
    _write_weights(partial / "model.safetensors", shape.tensors(), values, textless_ids(definition), progress)
    partial.rename(directory)


def _alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (GPT-2's choice of characters)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def textless_ids(definition: dict[str, Any]) -> list[int]:
    """The ids that have no text of their own: special tokens, and parts of characters."""
    alphabet = _alphabet()
    ids = [token["id"] for token in definition["added_tokens"]]
    for token, i in definition["model"]["vocab"].items():
        try:
            bytes(alphabet[character] for character in token).decode()
        except (KeyError, UnicodeDecodeError):
            ids.append(i)
    return sorted(ids)


def bytes_tokenizer() -> dict[str, Any]:
    """A byte-level BPE without a single merge."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(_alphabet())}, "merges": []},
    }


def fit_tokenizer(definition: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The tokenizer cut, or padded with tokens that no text has, to ``vocab_size`` ids; the last are special tokens."""
    room = vocab_size - _RESERVED
    vocab = {token: i for token, i in definition["model"]["vocab"].items() if i < room}
    taken = set(vocab.values())
    vocab.update({f"<filler_{i}>": i for i in range(room) if i not in taken})
    merges = []
    for merge in definition["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left in vocab and right in vocab and left + right in vocab:
            merges.append(merge)
    names = [*_SPECIAL, *(f"<|reserved_{i}|>" for i in range(_RESERVED - len(_SPECIAL)))]
    added = [
        {
            "id": room + i,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, name in enumerate(names)
    ]
    return {**definition, "added_tokens": added, "model": {**definition["model"], "vocab": vocab, "merges": merges}}


def _write_weights(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    values: Values,
    silent: Iterable[int],
    progress: Callable[[int, int], None],
) -> None:
    """Write weights. The embeddings of the ``silent`` ids are 0; so are the logits, if tied: never the largest."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    written = 0
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in shapes.items():
            for piece in values(name, shape):
                file.write(f32_to_bf16(piece).tobytes())
                written += 2 * piece.size
                progress(written, end)
        # The embedding is the logits layer too, and the first tensor of the file.
        row = 2 * shapes["model.embed_tokens.weight"][1]
        for i in silent:
            file.seek(8 + len(encoded) + i * row)
            file.write(bytes(row))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
