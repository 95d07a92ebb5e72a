"""Random material for the corpus, split by a stable hash into what training sees and what only the probes see.

The rule is one line: a key is held out when its hash is divisible by `HOLD_OUT_ONE_IN`.  Training never draws a
held-out key and the probes never draw another one, so the two never meet, whatever the seeds are.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from facts import NAMES, WORDS, words

Split = Literal["train", "test"]
Value = TypeVar("Value")

HOLD_OUT_ONE_IN = 8
MAX_DRAWS = 10_000
MAX_WORD_LENGTH = 10

_ONSETS = words("b c d f g h j k l m n p r s t v w x y z br ch cl cr dr fl fr gl gr pl pr qu sh sl sp st th tr")
_VOWELS = words("a e i o u y a e i o u ai ea ee oo ou")
_CODAS = ["", "", "", *words("n r s t l m d k ng nd st ck rt x p b g")]


def stable_hash(*key: object) -> int:
    """A 32-bit hash of the key that is the same in every process and on every machine."""
    text = "|".join(map(str, key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def is_held_out(*key: object) -> bool:
    """Whether the key belongs to the probes."""
    return stable_hash(*key) % HOLD_OUT_ONE_IN == 0


class Draw:
    """A source of random values of one split.

    `pieces` are the letter pieces of the tokenizer's vocabulary.  Words built from them make sure that training
    spells every piece: a model sees a piece as one symbol and can only learn its letters by having spelled it.
    """

    def __init__(self, rng: random.Random, split: Split = "train", pieces: Sequence[str] = ()) -> None:
        self.rng = rng
        self.split: Split = split
        self.pieces = pieces

    def training(self) -> "Draw":
        """The same random stream, drawing training material (the turns around a probe)."""
        return Draw(self.rng, "train", self.pieces)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability

    def pick(self, candidate: Callable[[], Value], *kind: object) -> Value:
        """Call `candidate` until its value falls into this split.

        A small value set may hold nothing out; the probes then use what there is.
        """
        for _ in range(MAX_DRAWS):
            value = candidate()
            if is_held_out(*kind, value) == (self.split == "test"):
                return value
        if self.split == "train":
            raise ValueError(f"every value of {kind} is held out")
        return value

    def phrased(self, skill: str, values: Sequence[str], templates: Sequence[str]) -> tuple[str, str]:
        """A (value, template) combination of this split.

        A fact cannot be held out (nobody can guess a capital), so a phrasing of it is.  The first template is the
        plainest phrasing; it is never held out.
        """
        while True:
            value = self.rng.choice(values)
            plain, *others = templates
            usable = [t for t in others if is_held_out(skill, t, value) == (self.split == "test")]
            if self.split == "train":
                usable.append(plain)
            if usable:
                return value, self.rng.choice(usable)

    def made_up_word(self) -> str:
        """A pronounceable word of one to three syllables."""
        rng = self.rng
        syllables = rng.choice((1, 2, 2, 3))
        letters = (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))
        return "".join(letters)[:MAX_WORD_LENGTH]

    def _spliced_word(self) -> str:
        head, tail = self.rng.choice(WORDS), self.rng.choice(WORDS)
        return (head[: self.rng.randint(1, len(head))] + tail[self.rng.randint(0, len(tail) - 1) :])[:MAX_WORD_LENGTH]

    def _word_of_pieces(self) -> str:
        joined = "".join(self.rng.choice(self.pieces) for _ in range(self.rng.choice((1, 2, 2, 3))))
        return joined[:MAX_WORD_LENGTH].lower()

    def word(self, real_share: float = 0.4) -> str:
        """A real word, or one that is made up, spliced from two real ones, or glued from vocabulary pieces."""

        def candidate() -> str:
            if self.chance(real_share):
                return self.rng.choice(WORDS)
            makers = [self.made_up_word, self._spliced_word]
            if self.pieces:
                makers.append(self._word_of_pieces)
            return self.rng.choice(makers)()

        return self.pick(candidate, "word")

    def name(self) -> str:
        """A person's name, half of them made up so that names are copied and not known."""
        return self.pick(
            lambda: self.rng.choice(NAMES) if self.chance(0.5) else self.made_up_word().capitalize(), "name"
        )

    def phrase(self, shortest: int = 2, longest: int = 7) -> str:
        """A run of unrelated words; only copying can reproduce it."""
        count = self.rng.randint(shortest, longest)
        return " ".join(self.rng.choice(WORDS) if self.chance(0.6) else self.word(real_share=0.0) for _ in range(count))
