"""From measurements to figures: medians, ratios, the table, and the JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from comparison.engines import ENGINES, OURS
from comparison.journal import Record
from comparison.limits import limit_of
from comparison.plan import LIMITS, METRICS, Metric
from comparison.shapes import SHAPES


@dataclass(frozen=True)
class Spread:
    """The figures of one engine for one metric: one per process, itself a median where a process gives several."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def range(self) -> str:
        """The least and the largest; empty for a single value."""
        low, high = min(self.values), max(self.values)
        return "" if len(self.values) == 1 else f"{three_digits(low)}-{three_digits(high)}"

    def text(self) -> str:
        """Median and range on one line, as plain text."""
        return f"{three_digits(self.median)} {self.range and f'[{self.range}]'}".strip()

    def as_json(self) -> dict[str, Any]:
        return {"median": self.median, "min": min(self.values), "max": max(self.values), "values": self.values}


@dataclass(frozen=True)
class Row:
    """One metric of one shape."""

    metric: Metric
    spreads: Mapping[str, Spread]
    limit: float | None

    @property
    def best_peer(self) -> str | None:
        """The engine to beat."""
        peers = [name for name in self.spreads if name != OURS]
        if not peers:
            return None
        choose = max if self.metric.higher_is_better else min
        return choose(peers, key=lambda name: self.spreads[name].median)

    @property
    def ratio(self) -> float | None:
        """Our median by that of the best peer."""
        if OURS not in self.spreads or self.best_peer is None:
            return None
        return self.spreads[OURS].median / self.spreads[self.best_peer].median

    @property
    def of_limit(self) -> float | None:
        """How much of what the machine allows is reached; 1 is all of it."""
        if OURS not in self.spreads or not self.limit:
            return None
        part = self.spreads[OURS].median / self.limit
        return part if self.metric.higher_is_better else 1 / part


@dataclass(frozen=True)
class Report:
    """Everything that a run found."""

    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    limits: Mapping[str, Mapping[str, Spread]]
    rows: Mapping[str, Sequence[Row]]
    records: Sequence[Record]


def make_report(records: Sequence[Record], machine: Mapping[str, Any], versions: Mapping[str, str]) -> Report:
    """Bring the measurements together. The limits of a shape are those measured beside its figures."""
    found: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for record in records:
        for name, figures in record.figures.items():
            found[record.shape][name][record.engine].append(median(figures))
    spreads = {
        shape: {
            name: {engine: Spread(tuple(values)) for engine, values in engines.items()} for name, engines in m.items()
        }
        for shape, m in found.items()
    }
    limits = {
        shape: {name: engines[LIMITS] for name, engines in metrics.items() if LIMITS in engines}
        for shape, metrics in spreads.items()
    }
    rows = {}
    for shape, metrics in spreads.items():
        medians = {name: spread.median for name, spread in limits[shape].items()}
        rows[shape] = [
            Row(metric, metrics[name], limit_of(name, SHAPES[shape], medians))
            for name, metric in METRICS.items()
            if name in metrics
        ]
    return Report(machine, versions, limits, rows, records)


def print_report(report: Report, console: Console) -> None:
    """One table per shape, then what it was measured on, and how quiet it was there."""
    names = _columns(report)
    for shape, rows in report.rows.items():
        ranges = any(spread.range for row in rows for spread in row.spreads.values())
        table = Table(title=_title(shape), title_justify="left", title_style="bold", show_lines=ranges)
        table.add_column("measure", no_wrap=True)
        for name in names:
            table.add_column(ENGINES[name].title, justify="right")
        for heading in _HEADINGS:
            table.add_column(heading, justify="right")
        for row in rows:
            found = [row.spreads.get(name) for name in names]
            cells = [Text("-") if one is None else Text(three_digits(one.median), style="bold") for one in found]
            for cell, one in zip(cells, found, strict=True):
                if one is not None and one.range:
                    cell.append(f"\n{one.range}", style="not bold dim")
            table.add_row(f"{row.metric.title}, {row.metric.unit}", *cells, *_derived(row))
        console.print(table)
    for line in _footer(report, names):
        console.print(line, highlight=False, markup=False)


def report_as_markdown(report: Report) -> str:
    """The same tables and lines for a document."""
    names = _columns(report)
    parts = []
    for shape, rows in report.rows.items():
        headings = ["measure", *(ENGINES[name].title for name in names), *_HEADINGS]
        lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
        for row in rows:
            found = [row.spreads.get(name) for name in names]
            cells = ["-" if one is None else f"**{three_digits(one.median)}** {one.range}".strip() for one in found]
            lines.append([f"{row.metric.title}, {row.metric.unit}", *cells, *_derived(row)])
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        parts.append(f"**{_title(shape)}**\n\n{table}\n")
    parts.append("\n".join(f"- {line}" for line in _footer(report, names)) + "\n")
    return "\n".join(parts)


_HEADINGS = ("to best peer", "limit", "of limit")


def _columns(report: Report) -> list[str]:
    return [name for name in ENGINES if any(name in row.spreads for rows in report.rows.values() for row in rows)]


def _title(shape: str) -> str:
    return f"Shape {shape} ({SHAPES[shape].title}), 4 bits: median and range"


def _derived(row: Row) -> tuple[str, str, str]:
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}x"
    limit = "-" if row.limit is None else three_digits(row.limit)
    return ratio, limit, "-" if row.of_limit is None else f"{row.of_limit:.0%}"


def _footer(report: Report, names: Sequence[str]) -> Iterator[str]:
    for shape, limits in report.limits.items():
        if limits:
            reads = f"memory read by one thread {limits['read_1'].text()}, by all {limits['read_N'].text()} GB/s"
            dots = f"int8 dot products by one {limits['int8_1'].text()}, by all {limits['int8_N'].text()} Gop/s"
            yield f"Beside shape {shape}: {reads}; {dots}"
    yield ", ".join(f"{name} {value}" for name, value in report.machine.items())
    for name in names:
        yield report.versions[name]
    if report.records:
        yield f"Load average before each measurement: {Spread(tuple(record.load for record in report.records)).text()}"
    others = [record.others for record in report.records if record.others is not None]
    if others:
        yield f"Cores that other processes used meanwhile: {Spread(tuple(others)).text()}"


def report_as_json(report: Report) -> dict[str, Any]:
    """The same, with every value and what else the machine did during each measurement."""
    return {
        "machine": dict(report.machine),
        "versions": dict(report.versions),
        "limits": {
            shape: {name: spread.as_json() for name, spread in limits.items()}
            for shape, limits in report.limits.items()
        },
        "shapes": {
            shape: {
                row.metric.name: {
                    "unit": row.metric.unit,
                    "higher_is_better": row.metric.higher_is_better,
                    "engines": {name: spread.as_json() for name, spread in row.spreads.items()},
                    "best_peer": row.best_peer,
                    "ratio_to_best_peer": row.ratio,
                    "limit": row.limit,
                    "of_limit": row.of_limit,
                }
                for row in rows
            }
            for shape, rows in report.rows.items()
        },
        "measurements": [vars(record) for record in report.records],
    }


def three_digits(value: float) -> str:
    """The figure as people read it."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
