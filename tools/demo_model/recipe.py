"""The recipe of the training: how often it sees what, for how long, and at which learning rates."""

from collections.abc import Mapping
from dataclasses import dataclass, replace


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
    json_sums: float = 0.0
    rich_tools: float = 0.0


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
)
# The second helping: sums in JSON, what people type beside the plain questions, less plain tools.
EVERYDAY_MIX = Mix(
    skills={
        "greet": 4,
        "capital": 7,
        "country": 6,
        "add": 10,
        "sub": 12,
        "opposite": 7,
        "spell": 12,
        "repeat": 10,
        "json": 11,
        "unknown": 4,
        "story": 1,
        "more_capitals": 3,
        "stranger": 6,
        "sentence": 10,
        "spell_piece": 9,
        "small_talk": 7,
        "free_story": 0.5,
    },
    tools=0.1,
    memory=0.12,
    sums=0.08,
    json=0.06,
    long=0.02,
    json_sums=0.08,
    rich_tools=0.1,
)
# The last polish: the facts and the sums again, which the second helping has pushed aside a little.
FINAL_MIX = replace(
    EVERYDAY_MIX,
    skills={
        **EVERYDAY_MIX.skills,
        "capital": 9,
        "country": 12,
        "add": 9,
        "sub": 14,
        "opposite": 10,
        "repeat": 8,
        "stranger": 5,
        "sentence": 8,
        "small_talk": 5,
        "say": 5,
    },
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


PHASES = (
    Phase(BROAD_MIX, steps=9400, matrix_learning_rate=0.016, other_learning_rate=0.003, seed=101),
    Phase(EVERYDAY_MIX, steps=4200, matrix_learning_rate=0.008, other_learning_rate=0.0015, seed=202),
    Phase(FINAL_MIX, steps=1700, matrix_learning_rate=0.005, other_learning_rate=0.001, seed=303),
)
