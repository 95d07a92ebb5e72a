"""From outcomes to figures: percentiles, throughput, errors; the table and the JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from serving.outcomes import Outcome
from serving.runner import Run

_LATE = 0.01
PERCENTILES = (50, 90, 95, 99)
LATENCIES = {
    "first": "to the first text, ms",
    "gap": "from text to text, ms",
    "per_token": "per further token, ms",
    "whole": "whole request, ms",
}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in order, linear between two of them.

    Raises:
        IndexError: there are no values.
    """
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(frozen=True)
class Figures:
    """What a run comes to. Latencies are in milliseconds and of good requests only; late is how long after they were
    due requests were sent (open load only): a client that cannot keep up, or its own bound on requests at a time."""

    target: str
    seconds: float
    requests: int
    failures: Mapping[str, int]
    requests_per_second: float
    output_tokens_per_second: float
    prompt_tokens_per_second: float
    mean_prompt_tokens: float
    mean_output_tokens: float
    latencies: Mapping[str, Mapping[str, float]]
    late: float
    client_cores: float
    server_cores: float | None

    @classmethod
    def of(cls, run: Run) -> Figures:
        good = [outcome for outcome in run.outcomes if not outcome.failure]
        prompts = [outcome.prompt_tokens or 0 for outcome in good]
        outputs = [outcome.output_tokens for outcome in good]
        failures = Counter(outcome.failure for outcome in run.outcomes if outcome.failure)
        return cls(
            target=run.target,
            seconds=run.seconds,
            requests=len(run.outcomes),
            failures=dict(failures.most_common()),
            requests_per_second=len(good) / run.seconds,
            output_tokens_per_second=sum(outputs) / run.seconds,
            prompt_tokens_per_second=sum(prompts) / run.seconds,
            mean_prompt_tokens=fmean(prompts) if prompts else 0.0,
            mean_output_tokens=fmean(outputs) if outputs else 0.0,
            latencies={name: _spread(values) for name, values in latencies(good).items() if values},
            late=max((outcome.sent - outcome.arrived for outcome in run.outcomes), default=0.0),
            client_cores=run.client_seconds / run.seconds,
            server_cores=None if run.server_seconds is None else run.server_seconds / run.seconds,
        )

    @property
    def processor_per_token(self) -> float:
        """Processor milliseconds of both sides per output token."""
        return 1000 * (self.client_cores + (self.server_cores or 0.0)) / self.output_tokens_per_second

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def latencies(good: Sequence[Outcome]) -> dict[str, list[float]]:
    """Name -> milliseconds, in order."""
    found = {
        "first": [outcome.first for outcome in good if outcome.first is not None],
        "gap": [gap for outcome in good for gap in outcome.gaps],
        "per_token": [outcome.per_token for outcome in good if outcome.per_token is not None],
        "whole": [outcome.ended - outcome.arrived for outcome in good],
    }
    return {name: sorted(1000 * value for value in values) for name, values in found.items()}


def _spread(ordered: Sequence[float]) -> dict[str, float]:
    spread = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES}
    return {"mean": fmean(ordered), **spread, "max": ordered[-1]}


def print_figures(figures: Figures, console: Console) -> None:
    """One table of latencies, with the throughput above and what went wrong below it."""
    good = figures.requests - sum(figures.failures.values())
    console.print(
        f"[bold]{figures.target}[/bold]: {good} of {figures.requests} requests in {figures.seconds:.1f} s, "
        f"{figures.requests_per_second:.2f} requests/s, {figures.output_tokens_per_second:.1f} output tokens/s, "
        f"{figures.prompt_tokens_per_second:.1f} prompt tokens/s",
        highlight=False,
        soft_wrap=True,
    )
    table = Table()
    table.add_column("latency", no_wrap=True)
    headings = ("mean", *(f"p{percent}" for percent in PERCENTILES), "max")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True, min_width=6)
    for name, spread in figures.latencies.items():
        table.add_row(LATENCIES[name], *(f"{spread[heading]:.1f}" for heading in headings))
    if figures.latencies:
        console.print(table)
    for failure, count in figures.failures.items():
        console.print(f"{count} x {failure}", style="red", highlight=False, markup=False)
    cores = f"this client used {figures.client_cores:.2f} cores"
    if figures.server_cores is not None:
        cores += f", the server {figures.server_cores:.2f}"
    if figures.late > _LATE:
        cores += f"; requests were sent up to {1000 * figures.late:.0f} ms late"
    console.print(
        f"Mean of {figures.mean_prompt_tokens:.1f} prompt and {figures.mean_output_tokens:.1f} output tokens; {cores}",
        highlight=False,
        soft_wrap=True,
    )


@dataclass(frozen=True)
class Overhead:
    """What HTTP costs: pairs of runs of the same requests, in one order and then in the other.

    Attributes:
        ratios: per pair, the time that the server took in relation to the engine in this process.
        gaps: per pair, the same of the median time between two pieces of text, which noise moves less.
        processor: per pair, milliseconds of processor time per token that the server and its client take more.
        best: the least median gap of all rounds of the server in relation to that of the engine in this process: on a
            machine that others use too, what they do only ever adds to a gap.
    """

    ratios: tuple[float, ...]
    gaps: tuple[float, ...]
    processor: tuple[float, ...]
    best: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[Figures, Figures]]) -> Overhead:
        """From (server, in process)."""
        return cls(
            tuple(own.output_tokens_per_second / server.output_tokens_per_second for server, own in pairs),
            tuple(server.latencies["gap"]["p50"] / own.latencies["gap"]["p50"] for server, own in pairs),
            tuple(server.processor_per_token - own.processor_per_token for server, own in pairs),
            min(server.latencies["gap"]["p50"] for server, _ in pairs)
            / min(own.latencies["gap"]["p50"] for _, own in pairs),
        )

    def as_json(self) -> dict[str, Any]:
        pairs = {"ratios": self.ratios, "gaps": self.gaps, "processor": self.processor}
        return {"median": {name: median(values) for name, values in pairs.items()}, "best": self.best, "pairs": pairs}

    def text(self) -> str:
        """One line."""
        whole, gap = ([100 * (ratio - 1.0) for ratio in ratios] for ratios in (self.ratios, self.gaps))
        return (
            f"HTTP takes {median(whole):+.2f} % longer than the engine in this process [{min(whole):+.2f} to "
            f"{max(whole):+.2f}, {len(whole)} pairs]; the median gap between texts is {median(gap):+.2f} % longer "
            f"[{min(gap):+.2f} to {max(gap):+.2f}; {100 * (self.best - 1.0):+.2f} from best round to best round]; "
            f"a token takes {median(self.processor):+.3f} ms more processor time"
        )
