"""The figures as bars, one panel per metric. Needs matplotlib (dependency group ``bench``)."""

from __future__ import annotations

from pathlib import Path

from comparison.engines import ENGINES, OURS
from comparison.report import Report, Row, three_digits
from comparison.shapes import SHAPES

_OURS, _PEER, _LIMIT = "#d9480f", "#868e96", "#1864ab"
_COLUMNS = 4


def plot_report(report: Report, path: Path) -> None:
    """Draw the report into an image file; its ending chooses the format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    panels = [(shape, row) for shape, rows in report.rows.items() for row in rows]
    lines = [-(-len(rows) // _COLUMNS) for rows in report.rows.values()]
    figure = Figure(figsize=(4.2 * _COLUMNS, 2.1 * max(1, sum(lines))), layout="constrained")
    grid = figure.subplots(max(1, sum(lines)), _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()

    def draw(axes: Axes, shape: str, row: Row) -> None:
        axes.set_axis_on()
        names = [name for name in reversed(ENGINES) if name in row.spreads]
        medians = [row.spreads[name].median for name in names]
        below = [row.spreads[name].median - min(row.spreads[name].values) for name in names]
        above = [max(row.spreads[name].values) - row.spreads[name].median for name in names]
        colors = [_OURS if name == OURS else _PEER for name in names]
        titles = [ENGINES[name].title for name in names]
        bars = axes.barh(titles, medians, xerr=(below, above), color=colors, error_kw={"elinewidth": 1})
        axes.bar_label(bars, map(three_digits, medians), padding=3, fontsize=8)
        axes.margins(x=0.15)
        if row.limit is not None:
            axes.axvline(row.limit, color=_LIMIT, linestyle="--", linewidth=1)
        better = "" if row.metric.higher_is_better else ", less is better"
        axes.set_title(f"{shape}: {row.metric.title} ({row.metric.unit}{better})", fontsize=8, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)

    position = 0
    last = panels[0][0] if panels else ""
    for shape, row in panels:
        if shape != last:
            position += -position % _COLUMNS
            last = shape
        draw(grid.flat[position], shape, row)
        position += 1
    shapes = ", ".join(f"{shape}: {SHAPES[shape].title}" for shape in report.rows)
    figure.suptitle(f"{shapes}; 4 bits; bars are medians, lines their range, dashes the machine's limit", fontsize=10)
    figure.savefig(path, dpi=120)
