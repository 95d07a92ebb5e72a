"""A model and a draft model of real shapes that agree on as many tokens as is wanted.

With random weights two models never draw the same token. These two are random but for one thing: an id's row of the
embedding is also, made smaller, the row of the logits layer of the id that is to follow it, and what the layers add is
too little to hide that. So the likeliest token follows from the last one alone, along one cycle through the vocabulary,
of which the draft model has some links wrong. Speed depends on none of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comparison.model_files import DEVIATION, bytes_tokenizer, fit_tokenizer, make_model, random_values, textless_ids
from comparison.shapes import SHAPES, Shape

EMBEDDING_DEVIATION = 4.0
"""Of the order of what all layers of the largest shape add."""

_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class UntiedShape(Shape):
    """A shape whose logits layer is a matrix of its own."""

    def config(self) -> dict[str, Any]:
        return {**Shape.config(self), "tie_word_embeddings": False}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        return {**Shape.tensors(self), "lm_head.weight": (self.vocab_size, self.hidden_size)}


def untied(shape: Shape) -> UntiedShape:
    return UntiedShape(**vars(shape))


MODEL = untied(SHAPES["M"])
DRAFT = replace(
    MODEL,
    name="draft",
    title="0.1B, Llama",
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
)


class Links:
    """Which id follows which: one cycle through all ids that have a text.

    Args:
        vocab_size: of both models.
        acceptances: which part of the draft model's links is right, in each of so many stretches of the cycle.
    """

    def __init__(self, vocab_size: int, acceptances: Sequence[float]) -> None:
        chance = np.random.default_rng(0)
        textless = textless_ids(fit_tokenizer(bytes_tokenizer(), vocab_size))
        self.cycle = chance.permutation(np.setdiff1d(np.arange(vocab_size), textless))
        self._stretch = len(self.cycle) // len(acceptances)
        self._count = len(acceptances)
        right = np.repeat(acceptances, self._stretch)
        wrong = np.flatnonzero(chance.random(len(right)) >= right)
        self.successors = np.roll(self.cycle, -1)
        self.draft_successors = self.successors.copy()
        self.draft_successors[wrong] = np.roll(self.successors[wrong], 1)

    def prompt(self, number: int, turn: int, length: int, answer: int) -> list[int]:
        """A prompt of ``length`` ids whose ``answer`` stays in stretch ``number``; another one for each ``turn``."""
        most = self._stretch - length - answer
        if most < 1:
            raise ValueError(f"a stretch has {self._stretch} tokens, too few for a prompt and its answer")
        begin = number * self._stretch + turn * (length + answer) % most
        return [int(i) for i in self.cycle[begin : begin + length]]


def linked_values(
    cycle: NDArray[np.int64], successors: NDArray[np.int64], seed: int
) -> Callable[[str, tuple[int, ...]], Iterator[NDArray[np.float32]]]:
    """The weights of a model in which ``successors`` follow the ids of ``cycle``."""
    generator = np.random.default_rng(seed)
    others = random_values(generator)
    embedding = np.zeros((0, 0), dtype=np.float32)

    def values(name: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
        nonlocal embedding
        if name == "model.embed_tokens.weight":
            embedding = generator.standard_normal(shape, dtype=np.float32)
            for rows in np.array_split(embedding, math.ceil(len(embedding) / _ROWS)):
                yield (rows * np.float32(EMBEDDING_DEVIATION)).ravel()
        elif name == "lm_head.weight":
            predecessors = np.full(shape[0], -1)
            predecessors[successors] = cycle
            for ids in np.array_split(predecessors, math.ceil(len(predecessors) / _ROWS)):
                rows = embedding[ids] * np.float32(DEVIATION)
                rows[ids < 0] = 0.0
                yield rows.ravel()
        else:
            yield from others(name, shape)

    return values


def make_pair(
    directory: Path,
    acceptances: Sequence[float],
    progress: Callable[[int, int], None] = lambda *_: None,
    shapes: tuple[UntiedShape, UntiedShape] = (MODEL, DRAFT),
) -> tuple[Path, Path, Links]:
    """Write what is missing of a model and its draft model; return their directories, and what links their ids."""
    model, draft = shapes
    links = Links(model.vocab_size, acceptances)
    name = "draft-" + "-".join(f"{100 * acceptance:.0f}" for acceptance in acceptances)
    paths = []
    for seed, (shape, path, successors) in enumerate(
        ((model, directory / "model", links.successors), (draft, directory / name, links.draft_successors))
    ):
        if not path.exists():
            make_model(shape, path, None, progress, linked_values(links.cycle, successors, seed))
        paths.append(path)
    return paths[0], paths[1], links
