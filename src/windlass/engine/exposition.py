"""Prometheus' text exposition format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of the format, for HTTP."""

Labels = Mapping[str, str]


class Exposition:
    """A document of metric families, in the order of their first samples. All samples of a family stand together.

    Args:
        prefix: put before the name of every family.
        labels: put on every sample, such as the model's name.
    """

    def __init__(self, prefix: str = "", labels: Labels | None = None) -> None:
        self._prefix = prefix
        self._labels = dict(labels or {})
        self._families: dict[str, list[str]] = {}

    def part(self, prefix: str = "", labels: Labels | None = None) -> Exposition:
        """The same document, to which samples are added under another prefix and with other labels."""
        part = Exposition(prefix, labels)
        part._families = self._families
        return part

    def add(self, kind: str, name: str, description: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """Add to a family of the ``kind`` counter (its name ends in ``_total``) or gauge."""
        lines = self._family(kind, name, description)
        for labels, value in samples:
            lines.append(self._sample(name, labels, value))

    def add_summary(self, name: str, description: str, samples: Iterable[tuple[Labels, tuple[int, float]]]) -> None:
        """Add to a family of summaries without quantiles, each the count and the sum of what was observed."""
        lines = self._family("summary", name, description)
        for labels, (count, total) in samples:
            lines.append(self._sample(f"{name}_sum", labels, total))
            lines.append(self._sample(f"{name}_count", labels, count))

    def add_histogram(
        self,
        name: str,
        description: str,
        bounds: Sequence[float],
        counts: Sequence[int],
        total: float,
        labels: Labels | None = None,
    ) -> None:
        """Add a histogram to a family.

        Args:
            bounds: the inclusive upper ends of all buckets but the last one, which has none.
            counts: how many observations fell into each bucket, and into none before it.
            total: the sum of the observations.
            labels: of this histogram.
        """
        lines = self._family("histogram", name, description)
        labels = labels or {}
        below = 0
        for bound, count in zip((*bounds, float("inf")), counts, strict=True):
            below += count
            lines.append(self._sample(f"{name}_bucket", {**labels, "le": _number(bound)}, below))
        lines.append(self._sample(f"{name}_sum", labels, total))
        lines.append(self._sample(f"{name}_count", labels, below))

    def text(self) -> str:
        """The document; it ends with a newline."""
        return "".join(f"{line}\n" for lines in self._families.values() for line in lines)

    def _family(self, kind: str, name: str, description: str) -> list[str]:
        """Return the lines of a family, to be added to."""
        name = self._prefix + name
        if name not in self._families:
            escaped = description.replace("\\", r"\\").replace("\n", r"\n")
            self._families[name] = [f"# HELP {name} {escaped}", f"# TYPE {name} {kind}"]
        return self._families[name]

    def _sample(self, name: str, labels: Labels, value: float) -> str:
        name = self._prefix + name
        pairs = ",".join(f'{key}="{_escape(text)}"' for key, text in {**self._labels, **labels}.items())
        return f"{name}{{{pairs}}} {_number(value)}" if pairs else f"{name} {_number(value)}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(str(value), str(value))
