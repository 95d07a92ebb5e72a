"""What is measured, in which order, and how long that takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

LIMITS = "limits"
_SHORT = 4096


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    name: str
    title: str
    unit: str
    higher_is_better: bool = True


METRICS = {
    metric.name: metric
    for metric in (
        Metric("decode_128", "decode after 128", "tok/s"),
        Metric("decode_2048", "decode after 2048", "tok/s"),
        Metric("prefill_512", "prefill 512", "tok/s"),
        Metric("prefill_2048", "prefill 2048", "tok/s"),
        Metric("batch_4", "decode, 4 at once", "tok/s"),
        Metric("batch_8", "decode, 8 at once", "tok/s"),
        Metric("batch_16", "decode, 16 at once", "tok/s"),
        Metric("first_text", "first token, text", "s", higher_is_better=False),
        Metric("first_ids", "first token, ids", "s", higher_is_better=False),
        Metric("first_cached", "first token, cached prefix", "s", higher_is_better=False),
        Metric("peak_rss", "peak RSS", "MiB", higher_is_better=False),
    )
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One sort of measurement: one process, one or two metrics.

    Attributes:
        length: tokens of the prompt; steps: tokens generated after the first; repeats: figures of one process.
        one_shot: a single short prompt in a fresh process is all there is.
        seconds: about how long it takes with shape M, for the estimate.
    """

    name: str
    metrics: tuple[str, ...]
    sequences: int = 1
    length: int = 0
    steps: int = 0
    repeats: int = 1
    one_shot: bool = False
    prefix_cache: bool = False
    seconds: float

    def request(self) -> dict[str, Any]:
        """The driver's part of it."""
        tokens = _SHORT if self.one_shot else self.length + self.steps + 64
        return {
            "kind": self.name,
            "metrics": self.metrics,
            "sequences": self.sequences,
            "length": self.length,
            "steps": self.steps,
            "repeats": self.repeats,
            "one_shot": self.one_shot,
            "prefix_cache": self.prefix_cache,
            "tokens": tokens,
        }


KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="decode", metrics=("decode_128",), length=128, steps=64, repeats=2, seconds=12),
        Kind(name="prefill", metrics=("prefill_512",), length=512, repeats=2, seconds=12),
        Kind(name="context", metrics=("prefill_2048", "decode_2048"), length=2048, steps=32, seconds=25),
        Kind(name="batch4", metrics=("batch_4",), sequences=4, length=32, steps=32, seconds=9),
        Kind(name="batch8", metrics=("batch_8",), sequences=8, length=32, steps=32, seconds=12),
        Kind(name="batch16", metrics=("batch_16",), sequences=16, length=32, steps=32, seconds=15),
        Kind(name="cached", metrics=("first_cached",), length=2000, repeats=3, prefix_cache=True, seconds=20),
        Kind(name="first_text", metrics=("first_text",), one_shot=True, seconds=3),
        Kind(name="first_ids", metrics=("first_ids",), one_shot=True, seconds=3),
        Kind(name="memory", metrics=("peak_rss",), one_shot=True, seconds=8),
    )
}
FAMILIES = {
    "decode": ("decode", "context"),
    "prefill": ("prefill", "context"),
    "batch": ("batch4", "batch8", "batch16"),
    "first": ("first_text", "first_ids"),
    "cached": ("cached",),
    "memory": ("memory",),
}
"""What ``--only`` names, and the kinds of each; decode and prefill at 2,048 tokens come from one process."""

_SECONDS_OF_SHAPE = {"M": 1.0, "S": 0.6}
_SECONDS_OF_LIMITS = 5.0


@dataclass(frozen=True)
class Step:
    """One measurement to make. The machine's own limits have the engine ``limits`` and no shape."""

    round: int
    engine: str
    shape: str
    kind: str


def select(families: Iterable[str]) -> list[str]:
    """Names of the kinds that the families ask for, in their order; all of them for none."""
    wanted = {kind for family in families for kind in FAMILIES[family]}
    return [kind for kind in KINDS if not wanted or kind in wanted]


def make_plan(rounds: int, engines: Sequence[str], shapes: Sequence[str], kinds: Sequence[str]) -> Iterator[Step]:
    """Every measurement: round by round, the engines next to each other, every other round in reverse."""
    for number in range(rounds):
        order = engines if number % 2 == 0 else engines[::-1]
        for shape in shapes:
            yield Step(number, LIMITS, shape, LIMITS)
            for kind in kinds:
                for engine in order:
                    yield Step(number, engine, shape, kind)


def expected_seconds(step: Step) -> float:
    """About how long a step takes, when nothing is known of this machine."""
    if step.kind == LIMITS:
        return _SECONDS_OF_LIMITS
    return KINDS[step.kind].seconds * _SECONDS_OF_SHAPE.get(step.shape, 1.0)
