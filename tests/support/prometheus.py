"""A reader of Prometheus' text format that refuses what the format does not allow, written from its description."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"')
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}

Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass
class Family:
    kind: str
    description: str
    samples: dict[Key, float] = field(default_factory=dict)


def read_exposition(text: str) -> dict[str, Family]:
    """The families by name; ValueError for anything that a scraper might refuse or misread."""
    if not text.endswith("\n"):
        raise ValueError("the last line must end")
    families: dict[str, Family] = {}
    descriptions: dict[str, str] = {}
    current = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name, description = line[7:].split(" ", 1)
            if name in descriptions:
                raise ValueError(f"second HELP of {name}")
            descriptions[name] = _unescape(description)
        elif line.startswith("# TYPE "):
            current, kind = line[7:].split(" ")
            if current in families or kind not in ("counter", "gauge", "histogram", "summary"):
                raise ValueError(line)
            families[current] = Family(kind, descriptions[current])
        else:
            key, value = _sample(line)
            family = families[current]
            if key[0] not in [current + suffix for suffix in _SUFFIXES.get(family.kind, ("",))]:
                raise ValueError(f"{key[0]} stands among the samples of {current}")
            if key in family.samples:
                raise ValueError(f"second sample of {key}")
            family.samples[key] = value
    for name, family in families.items():
        if family.kind == "counter" and not name.endswith("_total"):
            raise ValueError(f"the counter {name} has no _total")
        if family.kind == "histogram":
            _check_histogram(name, family)
    return families


def _sample(line: str) -> tuple[Key, float]:
    match = _NAME.match(line)
    if match is None:
        raise ValueError(line)
    labels: dict[str, str] = {}
    at = match.end()
    if line[at] == "{":
        at += 1
        while line[at] != "}":
            label = _LABEL.match(line, at)
            if label is None or label[1] in labels:
                raise ValueError(line)
            labels[label[1]] = _unescape(label[2])
            at = label.end()
            if line[at] == ",":
                at += 1
            elif line[at] != "}":
                raise ValueError(line)
        at += 1
    if line[at] != " " or re.fullmatch(r"[+-]?(\d+(\.\d+)?(e[+-]\d+)?|Inf|NaN)", line[at + 1 :]) is None:
        raise ValueError(line)
    return (match[0], tuple(sorted(labels.items()))), float(line[at + 1 :])


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), text)


def _check_histogram(name: str, family: Family) -> None:
    series: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    for (sample, labels), value in family.samples.items():
        if sample == f"{name}_bucket":
            rest = tuple(pair for pair in labels if pair[0] != "le")
            series.setdefault(rest, []).append((float(dict(labels)["le"]), value))
    for labels, buckets in series.items():
        bounds, counts = zip(*buckets, strict=True)
        if list(bounds) != sorted(set(bounds)) or bounds[-1] != float("inf"):
            raise ValueError(f"{name}: the bounds {bounds} do not rise to +Inf")
        if list(counts) != sorted(counts) or counts[-1] != family.samples[f"{name}_count", labels]:
            raise ValueError(f"{name}: the counts {counts} do not add up")
        if (f"{name}_sum", labels) not in family.samples:
            raise ValueError(f"{name} has no sum")
