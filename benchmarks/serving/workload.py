"""What is asked, and when: prompts of a wanted length, lengths of answers, and the moments of arrival."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

_WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "name",
    "team",
    "minute",
    "idea",
    "kid",
    "body",
    "back",
    "parent",
    "face",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
    "air",
    "teacher",
    "force",
    "education",
]


@dataclass(frozen=True)
class Length:
    """A number of tokens: fixed, or drawn evenly from a range."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"{self.least}-{self.most} is no range of lengths")

    @classmethod
    def parse(cls, text: str) -> Length:
        """``128``, or ``64-256``.

        Raises:
            ValueError: it is neither.
        """
        least, dash, most = text.partition("-")
        return cls(int(least), int(most) if dash else int(least))

    def draw(self, chance: random.Random) -> int:
        return chance.randint(self.least, self.most)


@dataclass(frozen=True)
class TextLength:
    """How many tokens a server makes of a prompt of so many words: a line through two measured points."""

    tokens_per_word: float = 1.0
    fixed_tokens: float = 0.0
    """What the chat template adds."""

    @classmethod
    def through(cls, first: tuple[int, int], second: tuple[int, int]) -> TextLength:
        """From two (words, tokens)."""
        slope = (second[1] - first[1]) / (second[0] - first[0])
        return cls(slope, first[1] - slope * first[0])

    def words(self, tokens: int) -> int:
        """Words of a prompt of about so many tokens; at least one."""
        return max(1, round((tokens - self.fixed_tokens) / self.tokens_per_word))


@dataclass(frozen=True)
class Request:
    """One request to send.

    Attributes:
        due: seconds after the beginning at which it arrives; None when it is sent as soon as another has ended.
    """

    number: int
    prompt: str
    output_tokens: int
    seed: int
    due: float | None


@dataclass(frozen=True)
class Workload:
    """What a run sends. The same seed gives the same requests.

    Attributes:
        rate: requests per second, as a Poisson process; None sends the next one when another has ended.
        shared_prefix: so many tokens at the beginning of each prompt are the same in all of them.
    """

    prompt_tokens: Length
    output_tokens: Length
    shared_prefix: int = 0
    rate: float | None = None
    seed: int = 0

    def requests(self, text: TextLength) -> Iterator[Request]:
        """Without end; the runner takes as many as it needs."""
        chance = random.Random(self.seed)  # noqa: S311
        prefix = words(random.Random(0), text.words(self.shared_prefix)) if self.shared_prefix else ""  # noqa: S311
        number, due = 0, 0.0
        while True:
            if self.rate is not None:
                due += chance.expovariate(self.rate)
            wanted = text.words(self.prompt_tokens.draw(chance))
            own = words(chance, max(1, wanted - len(prefix.split())))
            yield Request(
                number=number,
                prompt=f"{prefix} {own}".strip(),
                output_tokens=self.output_tokens.draw(chance),
                seed=chance.getrandbits(31),
                due=None if self.rate is None else due,
            )
            number += 1


def words(chance: random.Random, count: int) -> str:
    """Text of so many words by chance."""
    return " ".join(chance.choices(_WORDS, k=count))
