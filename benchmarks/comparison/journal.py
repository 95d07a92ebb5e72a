"""Every measurement as one line of a file, so that a run that was cut goes on where it was."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from comparison.plan import Step, expected_seconds


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement.

    Attributes:
        version: of the engine, or the processor for the limits; figures of another version do not count.
        figures: metric -> figures of the one process.
        error: why there are none.
        load: the system's 1-minute load average just before.
        others: cores that other processes used meanwhile; None where the system does not tell.
        stolen: part of the machine's time that its host took away.
    """

    round: int
    engine: str
    shape: str
    kind: str
    version: str
    figures: dict[str, list[float]]
    error: str | None
    seconds: float
    when: str
    load: float
    others: float | None
    stolen: float | None

    @property
    def step(self) -> Step:
        """What was measured."""
        return Step(self.round, self.engine, self.shape, self.kind)


class Journal:
    """The file and what it has. Lines are only ever added.

    Args:
        quiet: measurements during which other processes used more cores than this do not count; None lets all count.
    """

    def __init__(self, path: Path, quiet: float | None = None) -> None:
        self.path = path
        self._quiet = quiet
        self.records: list[Record] = []
        names = {field.name for field in fields(Record)}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            try:
                values: dict[str, Any] = json.loads(line)
            except ValueError:
                continue  # the line that a killed run was writing
            if isinstance(values, dict) and values.keys() == names:
                self.records.append(Record(**values))

    def add(self, record: Record) -> None:
        """Append a measurement to the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + json.dumps(asdict(record)) + "\n")
        self.records.append(record)

    def current(self, versions: dict[str, str]) -> list[Record]:
        """The measurements that count: good ones, with the versions that are installed now; of each step the last."""
        found = {record.step: record for record in self.records if self._counts(record, versions)}
        return list(found.values())

    def _counts(self, record: Record, versions: dict[str, str]) -> bool:
        noisy = self._quiet is not None and record.others is not None and record.others > self._quiet
        return not record.error and not noisy and versions.get(record.engine) == record.version

    def pending(self, steps: Iterable[Step], versions: dict[str, str]) -> list[Step]:
        """The steps that are still to be done."""
        done = {record.step for record in self.current(versions)}
        return [step for step in steps if step not in done]

    def estimate(self, steps: Iterable[Step]) -> float:
        """About how many seconds the steps take together, from earlier ones of the same kind where there are any."""
        past: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for record in self.records:
            if not record.error:
                past[record.engine, record.shape, record.kind].append(record.seconds)
        total = 0.0
        for step in steps:
            known = past.get((step.engine, step.shape, step.kind))
            total += median(known) if known else expected_seconds(step)
        return total
