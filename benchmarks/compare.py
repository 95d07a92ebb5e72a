"""Windlass beside the other CPU engines on the same work, each measurement in a process of its own, interleaved.

    python benchmarks/compare.py prepare                    # models with random weights, in each engine's format
    python benchmarks/compare.py --rounds 5 --json out.json --plot out.png
    python benchmarks/compare.py --only decode prefill --engines windlass llamacpp --shapes M

Engines that are not installed are left out. A run that was cut goes on where it was when it is started again with the
same --json. docs/performance.md tells how to install the engines, and what each figure means. Asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from comparison.engines import ENGINES, OURS, ChildError, Engine, call_driver, find_python, machine
from comparison.journal import Journal, Record
from comparison.limits import build_limits, measure_limits
from comparison.model_files import default_tokenizer, make_model
from comparison.noise import Watch, alone
from comparison.plan import FAMILIES, KINDS, LIMITS, Step, expected_seconds, make_plan, select
from comparison.plot import plot_report
from comparison.report import make_report, print_report, report_as_json, report_as_markdown
from comparison.settings import setting
from comparison.shapes import SHAPES

console = Console()


class Bench:
    """The engines that can be measured here, and how one step of the plan is done."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.home: Path = arguments.home
        self.threads: int = arguments.threads
        self.shapes: list[str] = arguments.shapes
        self.machine = machine()
        self.engines: dict[str, tuple[Engine, Path]] = {}
        self.versions: dict[str, str] = {LIMITS: str(self.machine["processor"])}
        self._warm: set[tuple[str, str]] = set()
        given = dict(arguments.peer)
        for name in arguments.engines:
            engine = ENGINES[name]
            if name == OURS:
                engine = replace(engine, running={**engine.running, **dict(arguments.config)})
            python = find_python(engine, self.home, given)
            if python is None:
                console.print(f"{engine.title}: left out, {self.home / 'venv' / engine.environment} is not there")
                continue
            self.engines[name] = (engine, python)

    def find_versions(self) -> None:
        """Ask each engine for its version, and leave out those that fail or lack a model."""
        self._limits = build_limits(self.home)
        for name, (engine, python) in list(self.engines.items()):
            missing = [path for shape in self.shapes if not (path := engine.model(self.home, shape)).exists()]
            try:
                if missing:
                    raise ChildError(f"{missing[0]} is not there; 'compare.py prepare' makes it")
                version = call_driver(python, engine, {"kind": "version"}, threads=self.threads)
            except ChildError as error:
                console.print(f"{engine.title}: left out, {error}", markup=False)
                del self.engines[name]
                continue
            settings = json.dumps(engine.running, sort_keys=True) if engine.running else ""
            self.versions[name] = f"{version} {settings}".strip() + f", {self.threads} threads"

    def do(self, step: Step) -> Record:
        """Make one measurement, alone on the machine as far as other benchmarks go."""
        figures: dict[str, list[float]] = {}
        error = None
        with alone():
            watch = Watch()
            try:
                if step.kind in ("first_text", "first_ids", "memory") and self._warm_up(step):
                    watch = Watch()
                limits = step.engine == LIMITS
                figures = measure_limits(self._limits, self.threads) if limits else self._call(step)
            except (ChildError, OSError) as failure:
                error = str(failure)
            others, stolen = watch.result()
        return Record(
            round=step.round,
            engine=step.engine,
            shape=step.shape,
            kind=step.kind,
            version=self.versions[step.engine],
            figures=figures,
            error=error,
            seconds=round(watch.seconds, 3),
            when=time.strftime("%Y-%m-%d %H:%M:%S"),
            load=round(watch.load, 2),
            others=others,
            stolen=stolen,
        )

    def _warm_up(self, step: Step) -> bool:
        """Start the engine once, so that what it keeps on disk is made, and files are in memory; False if it was."""
        if (step.engine, step.shape) in self._warm:
            return False
        self._call(replace(step, kind="first_text"))
        self._warm.add((step.engine, step.shape))
        return True

    def _call(self, step: Step) -> dict[str, list[float]]:
        engine, python = self.engines[step.engine]
        request = {
            **KINDS[step.kind].request(),
            "model": str(engine.model(self.home, step.shape)),
            "threads": self.threads,
            "options": engine.running,
        }
        figures: dict[str, list[float]] = call_driver(python, engine, request, threads=self.threads)
        return figures


def prepare(arguments: argparse.Namespace) -> None:
    """Make the models, and of them what each installed engine reads."""
    make_models(arguments)
    bench = Bench(arguments)
    for shape in arguments.shapes:
        source = arguments.home / "models" / f"{shape}-hf"
        for engine, python in bench.engines.values():
            target = engine.model(arguments.home, shape)
            if target.exists():
                continue
            unfinished = target.with_name("part-" + target.name)
            console.print(f"{target}: made for {engine.title}")
            options = {**engine.preparing, "threads": arguments.threads}
            request = {"kind": "prepare", "source": str(source), "target": str(unfinished), "options": options}
            try:
                call_driver(python, engine, request, threads=arguments.threads)
            except ChildError as error:
                console.print(f"{engine.title}: {error}", markup=False)
                if unfinished.is_dir():
                    shutil.rmtree(unfinished)
                else:
                    unfinished.unlink(missing_ok=True)
                continue
            unfinished.rename(target)


def make_models(arguments: argparse.Namespace) -> None:
    """Make the Hugging Face directories with random weights."""
    tokenizer = arguments.tokenizer or default_tokenizer()
    for name in arguments.shapes:
        directory = arguments.home / "models" / f"{name}-hf"
        if directory.exists():
            continue
        if tokenizer is None:
            console.print("No --tokenizer is given: the models get one that knows bytes only, which loads in no time")
        with Progress(console=console) as progress:
            task = progress.add_task(f"{directory}", total=None)
            report = partial(_update, progress, task)
            make_model(SHAPES[name], directory, tokenizer, report)


def _update(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


def run(arguments: argparse.Namespace) -> None:
    """Measure what the journal does not have yet, and report all of it."""
    bench = Bench(arguments)
    bench.find_versions()
    journal_path = arguments.json.with_suffix(".jsonl") if arguments.json else arguments.home / "compare.jsonl"
    if arguments.fresh:
        journal_path.unlink(missing_ok=True)
    journal = Journal(journal_path, arguments.quiet)
    steps = list(make_plan(arguments.rounds, list(bench.engines), arguments.shapes, select(arguments.only)))
    pending = journal.pending(steps, bench.versions)
    minutes = journal.estimate(pending) / 60
    done = len(steps) - len(pending)
    console.print(
        f"{len(pending)} measurements, about {minutes:.0f} min; {done} more are in {journal_path} already",
        highlight=False,
    )
    try:
        if pending:
            measure(bench, journal, pending)
    except KeyboardInterrupt:
        console.print("Cut short: the same command goes on from here")
    wanted = set(steps)
    records = [record for record in journal.current(bench.versions) if record.step in wanted]
    report = make_report(records, bench.machine, bench.versions)
    print_report(report, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(report_as_json(report), indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(report_as_markdown(report), encoding="utf-8")
    if arguments.plot:
        plot_report(report, arguments.plot)


def measure(bench: Bench, journal: Journal, pending: Sequence[Step]) -> None:
    """Do the steps, one after the other, with a progress bar that goes by their expected time."""
    columns = (
        TextColumn("{task.description:50}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=round(sum(map(expected_seconds, pending))))
        spent = 0.0
        for number, step in enumerate(pending, 1):
            what = f"round {step.round + 1}, {step.shape} {step.kind}, {step.engine}"
            progress.update(task, description=f"{number}/{len(pending)}: {what}")
            record = bench.do(step)
            journal.add(record)
            if record.error:
                progress.console.print(f"{step.engine} {step.shape} {step.kind}: {record.error}", markup=False)
            spent += expected_seconds(step)
            progress.update(task, completed=round(spent))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = ("run", "prepare", "make-model")
    parser.add_argument("command", nargs="?", choices=commands, default="run", help="run is the default")
    home = os.environ.get("WINDLASS_BENCH_HOME") or Path.home() / ".cache" / "windlass-bench"
    parser.add_argument("--home", type=Path, default=Path(home), help="models/ and venv/<engine>/; %(default)s")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=[], help="measure these families only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of every engine")
    parser.add_argument("--peer", action="append", type=_peer, default=[], metavar="NAME=PYTHON")
    parser.add_argument(
        "--config",
        action="append",
        type=setting,
        default=[],
        metavar="FIELD=VALUE",
        help="a field of Windlass's EngineConfig, such as quantization=q4f16_1 (the default) or kv_cache_dtype=bf16",
    )
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json for make-model and prepare")
    parser.add_argument("--json", type=Path, help="write the figures here, and each measurement beside it (.jsonl)")
    parser.add_argument("--markdown", type=Path, help="write the table here, for a document")
    parser.add_argument("--plot", type=Path, help="draw the figures into this image; needs matplotlib")
    parser.add_argument(
        "--quiet",
        type=float,
        metavar="CORES",
        help="do not count measurements during which other processes used more than this; run again to repeat those",
    )
    parser.add_argument("--fresh", action="store_true", help="forget the measurements of an earlier run")
    return parser.parse_args(words)


def _peer(text: str) -> tuple[str, Path]:
    name, _, python = text.partition("=")
    if not python or name not in {engine.environment for engine in ENGINES.values()}:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PYTHON with the name of an engine")
    return name, Path(python).absolute()


def main() -> None:
    arguments = parse(sys.argv[1:])
    {"run": run, "prepare": prepare, "make-model": make_models}[arguments.command](arguments)


if __name__ == "__main__":
    main()
