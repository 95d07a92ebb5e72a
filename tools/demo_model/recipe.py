"""The recipe of the training: how often it sees what, for how long, and at which learning rates."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Mix:
    """The weights of the single-turn skills, and the shares of the special conversations among all.

    What is left are ordinary conversations of one to six turns.
    """

    skills: Mapping[str, float]
    tools: float
    memory: float
    sums: float
    json: float
    long: float
    json_sums: float


BROAD_MIX = Mix(
    skills={
        "greet": 4,
        "capital": 8,
        "country": 8,
        "add": 14,
        "sub": 16,
        "opposite": 8,
        "spell": 22,
        "repeat": 14,
        "json": 11,
        "unknown": 5,
        "story": 1.2,
    },
    tools=0.16,
    memory=0.13,
    sums=0.15,
    json=0.05,
    long=0.02,
    json_sums=0.0,
)


@dataclass(frozen=True)
class Phase:
    """A part of the training; learning rates are the peaks of a cosine that falls to `last_share` of them."""

    mix: Mix
    steps: int
    matrix_learning_rate: float
    other_learning_rate: float
    seed: int
    tokens_per_batch: int = 2560
    warm_up_steps: int = 80
    last_share: float = 0.02


PHASES = (Phase(BROAD_MIX, steps=9400, matrix_learning_rate=0.016, other_learning_rate=0.003, seed=101),)
