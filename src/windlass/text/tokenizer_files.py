"""Which files of a model directory make its tokenizer."""

from __future__ import annotations

from pathlib import Path

ACCEPTED = (
    "tokenizer.json; tekken.json; tokenizer.model (SentencePiece or tiktoken), also as tokenizer.model.v1 and so on; "
    "tiktoken.model or *.tiktoken; vocab.json with merges.txt (byte-level BPE); vocab.txt (WordPiece)"
)
"""In words, for errors."""

BESIDE = ("merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
"""What may stand beside them and counts too."""


def find_tokenizer(directory: Path) -> Path | None:
    """The file with the vocabulary, or None: the first of ``ACCEPTED`` that is there.

    Raises:
        OSError: the directory cannot be read.
    """
    names = {path.name for path in directory.iterdir()}
    numbered = sorted(name for name in names if name.startswith("tokenizer.model.v"))
    order = [
        "tokenizer.json",
        "tekken.json",
        "tokenizer.model",
        *reversed(numbered),
        "tiktoken.model",
        *sorted(name for name in names if name.endswith(".tiktoken")),
        *(["vocab.json"] if "merges.txt" in names else []),
        "vocab.txt",
    ]
    return next((directory / name for name in order if name in names), None)
