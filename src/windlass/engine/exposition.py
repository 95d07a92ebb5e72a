"""Prometheus' text exposition format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of the format, for HTTP."""

Labels = Mapping[str, str]


class Exposition:
    """A document of metric families, written in the order they are added.

    Args:
        prefix: put before the name of every family.
        labels: put on every sample, such as the model's name.
    """

    def __init__(self, prefix: str, labels: Labels) -> None:
        self._prefix = prefix
        self._labels = dict(labels)
        self._lines: list[str] = []

    def add(self, kind: str, name: str, description: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """Add a family of the ``kind`` counter (its name ends in ``_total``) or gauge."""
        name = self._begin(kind, name, description)
        for labels, value in samples:
            self._sample(name, labels, value)

    def add_summary(self, name: str, description: str, samples: Iterable[tuple[Labels, tuple[int, float]]]) -> None:
        """Add a family of summaries without quantiles, each the count and the sum of what was observed."""
        name = self._begin("summary", name, description)
        for labels, (count, total) in samples:
            self._sample(f"{name}_sum", labels, total)
            self._sample(f"{name}_count", labels, count)

    def add_histogram(
        self, name: str, description: str, bounds: Sequence[float], counts: Sequence[int], total: float
    ) -> None:
        """Add a histogram.

        Args:
            bounds: the inclusive upper ends of all buckets but the last one, which has none.
            counts: how many observations fell into each bucket, and into none before it.
            total: the sum of the observations.
        """
        name = self._begin("histogram", name, description)
        below = 0
        for bound, count in zip((*bounds, float("inf")), counts, strict=True):
            below += count
            self._sample(f"{name}_bucket", {"le": _number(bound)}, below)
        self._sample(f"{name}_sum", {}, total)
        self._sample(f"{name}_count", {}, below)

    def text(self) -> str:
        """The document; it ends with a newline."""
        return "".join(f"{line}\n" for line in self._lines)

    def _begin(self, kind: str, name: str, description: str) -> str:
        name = self._prefix + name
        escaped = description.replace("\\", r"\\").replace("\n", r"\n")
        self._lines += (f"# HELP {name} {escaped}", f"# TYPE {name} {kind}")
        return name

    def _sample(self, name: str, labels: Labels, value: float) -> None:
        pairs = ",".join(f'{key}="{_escape(text)}"' for key, text in {**self._labels, **labels}.items())
        self._lines.append(f"{name}{{{pairs}}} {_number(value)}" if pairs else f"{name} {_number(value)}")


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(str(value), str(value))
