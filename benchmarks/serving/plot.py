"""A run as curves. Needs matplotlib (dependency group ``bench``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from serving.figures import LATENCIES, latencies
from serving.runner import Run

_BINS = 60
_COLORS = ("#d9480f", "#1864ab")


def plot_runs(runs: Sequence[Run], path: Path) -> None:
    """Draw how latencies are distributed, and the throughput over time, into an image; its ending chooses the format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    grid = figure.subplots(2, 3).flat
    for (name, title), axes in zip(LATENCIES.items(), grid, strict=False):  # two are left
        for run, color in zip(runs, _COLORS, strict=False):
            values = latencies([outcome for outcome in run.outcomes if not outcome.failure])[name]
            if values:
                shares = [100 * (place + 1) / len(values) for place in range(len(values))]
                axes.step(values, shares, where="post", color=color, label=run.target)
        axes.set_xlabel(title, fontsize=9)
        axes.set_ylabel("% at most so long", fontsize=9)
    running, throughput = grid
    for run, color in zip(runs, _COLORS, strict=False):
        step = run.seconds / _BINS
        pieces = Counter(int(when / step) for outcome in run.outcomes for when in outcome.times)
        rates = [pieces[place] / step for place in range(_BINS + 1)]
        moments = [place * step for place in range(_BINS + 1)]
        throughput.step(moments, rates, where="post", color=color, label=run.target)
        changes = sorted(change for outcome in run.outcomes for change in ((outcome.sent, 1), (outcome.ended, -1)))
        count, counts = 0, []
        for _, change in changes:
            count += change
            counts.append(count)
        running.step([when for when, _ in changes], counts, where="post", color=color, label=run.target)
    running.set_xlabel("s; requests at a time", fontsize=9)
    throughput.set_xlabel("s; pieces of text per second", fontsize=9)
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
