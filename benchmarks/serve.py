"""Load on any OpenAI-compatible server: latencies, throughput, errors; and what HTTP costs over the engine itself.

    python benchmarks/serve.py --base-url http://127.0.0.1:8000/v1 --concurrency 16 --requests 200
    python benchmarks/serve.py --start "windlass serve" --rate 5 --seconds 60 --json out.json --plot out.png
    python benchmarks/serve.py --start "windlass serve DIR --enable-debug" --inprocess --model-dir DIR --ignore-eos \\
        --concurrency 16 --requests 16 --output-tokens 64 --rounds 7

Without --rate, --concurrency requests are open at any time (closed load). With --rate, requests arrive by chance at
that mean rate, whether or not earlier ones have ended (open load), and latencies count from the arrival; --concurrency
is then a bound. Every request streams. Prompts are words by chance, of which two first requests find out
how many make --prompt-tokens.
With --inprocess the same requests go to an AsyncMLCEngine in this process, in turn with the server if there is one, for
--rounds pairs after one that does not count. The client is our own, since it shares the machine with the server; see
serving/http_client.py. Asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from comparison.engines import machine
from comparison.noise import Watch, alone
from comparison.settings import setting
from serving.figures import Figures, Overhead, print_figures
from serving.http_client import Client
from serving.plot import plot_runs
from serving.runner import CalibrationError, Extent, Run, Runner, measure_text
from serving.started import ServerError, StartedServer
from serving.targets import EngineTarget, ServerTarget, Target
from serving.workload import Length, Workload

console = Console()


async def run(arguments: argparse.Namespace) -> None:
    """Measure, print, and write what was asked for."""
    extra = {**arguments.extra_body, **({"debug_config": {"ignore_eos": True}} if arguments.ignore_eos else {})}
    extent = Extent(arguments.requests, arguments.seconds, arguments.concurrency)
    load = Workload(
        arguments.prompt_tokens, arguments.output_tokens, arguments.shared_prefix, arguments.rate, arguments.seed
    )
    watch = Watch()
    async with AsyncExitStack() as stack:
        targets = await open_targets(arguments, extra, stack)
        texts = {target.name: await measure_text(target) for target in targets}
        rounds: list[list[Run]] = []
        for number in range(arguments.rounds + (len(targets) > 1)):
            # The other way round each time, and other prompts, which the prefix cache does not know.
            order = targets if number % 2 == 0 else targets[::-1]
            workload = replace(load, seed=load.seed + number)
            runs = {}
            for target in order:
                with alone(), bar(f"round {number + 1}, {target.name}", extent) as progress:
                    requests = workload.requests(texts[target.name])
                    runs[target.name] = await Runner(target, extent, progress).run(requests)
            rounds.append([runs[target.name] for target in targets])
    others, stolen = watch.result()  # a server that was started has ended, and counts as ours
    counted = rounds[1:] if len(targets) > 1 else rounds
    figures = [[Figures.of(run) for run in runs] for runs in counted]
    report(arguments, figures, counted[-1], {**machine(), "others": others, "stolen": stolen})


async def open_targets(arguments: argparse.Namespace, extra: dict[str, Any], stack: AsyncExitStack) -> list[Target]:
    """The server, started if asked for, and the engine in this process; ``stack`` ends them."""
    targets: list[Target] = []
    url, server = arguments.base_url, None
    if arguments.start:
        console.print(f"Starting {arguments.start}", highlight=False, markup=False, soft_wrap=True)
        server = StartedServer(arguments.start)
        stack.callback(server.close)
        url = server.url
    if url:
        client = Client(url, arguments.api_key)
        target = ServerTarget(client, arguments.model, arguments.endpoint, extra, arguments.timeout, server)
        stack.push_async_callback(target.close)
        targets.append(target)
    if arguments.inprocess:
        engine = EngineTarget(arguments.model_dir, dict(arguments.config), arguments.endpoint, extra)
        stack.push_async_callback(engine.close)
        targets.append(engine)
    return targets


@contextmanager
def bar(title: str, extent: Extent) -> Iterator[Callable[[int, float], None]]:
    """A progress bar that draws only when it is told to, once a second: its own thread would cost the server time."""
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task(title, total=extent.requests or round(extent.seconds or 0))

        def update(requests: int, seconds: float) -> None:
            progress.update(task, completed=requests if extent.requests else round(seconds), refresh=True)

        yield update


def report(arguments: argparse.Namespace, figures: list[list[Figures]], last: list[Run], about: dict[str, Any]) -> None:
    """Print the last round, and the overhead from all of them; write the files."""
    for each in figures[-1]:
        print_figures(each, console)
    overhead = None
    complete = all(each.latencies.get("gap") for pair in figures for each in pair)
    if len(last) == 2 and complete:
        overhead = Overhead.of([(pair[0], pair[1]) for pair in figures])
        console.print(overhead.text(), style="bold", highlight=False, soft_wrap=True)
    console.print(", ".join(f"{name} {value}" for name, value in about.items()), highlight=False, soft_wrap=True)
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "api_key"}
        written = {
            "when": time.strftime("%Y-%m-%d %H:%M:%S"),
            "settings": settings,
            "machine": about,
            "overhead": overhead and overhead.as_json(),
            "rounds": [[each.as_json() for each in runs] for runs in figures],
        }
        arguments.json.write_text(json.dumps(written, indent=1, default=str) + "\n", encoding="utf-8")
    if arguments.plot:
        plot_runs(last, arguments.plot)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    who = parser.add_argument_group("who is asked")
    who.add_argument("--base-url", metavar="URL", help="of a running server, up to and with /v1")
    who.add_argument("--start", metavar="COMMAND", help="start this server, with --port or {port} on a free port")
    who.add_argument("--inprocess", action="store_true", help="also, or only, an AsyncMLCEngine in this process")
    who.add_argument("--model", help="name to ask for; left out, the server takes its default")
    who.add_argument("--model-dir", help="model of --inprocess; the demo model by default")
    who.add_argument(
        "--config",
        action="append",
        type=setting,
        default=[],
        metavar="FIELD=VALUE",
        help="of --inprocess: a field of EngineConfig, such as quantization=q4f16_1; the mode is server by default",
    )
    who.add_argument("--api-key", help="sent as a bearer token")
    what = parser.add_argument_group("what is asked")
    what.add_argument("--endpoint", choices=["chat", "completions"], default="chat")
    what.add_argument("--prompt-tokens", type=Length.parse, default=Length(128, 128), metavar="N|N-M")
    what.add_argument("--output-tokens", type=Length.parse, default=Length(64, 64), metavar="N|N-M")
    what.add_argument("--shared-prefix", type=int, default=0, metavar="N", help="tokens that begin every prompt")
    what.add_argument("--seed", type=int, default=1, help="the same seed sends the same requests; %(default)s")
    what.add_argument("--ignore-eos", action="store_true", help="debug_config: go on up to --output-tokens")
    what.add_argument("--extra-body", type=json.loads, default={}, metavar="JSON", help="more fields of each request")
    much = parser.add_argument_group("how much")
    much.add_argument("--concurrency", type=_count, metavar="N", help="requests at a time; 8 without --rate")
    much.add_argument("--rate", type=float, metavar="R", help="requests per second, a Poisson process")
    extent = much.add_mutually_exclusive_group()
    extent.add_argument("--requests", type=_count, metavar="N", help="100 by default")
    extent.add_argument("--seconds", type=float, metavar="S", help="send for so long, then wait for what is open")
    much.add_argument("--rounds", type=_count, default=1, help="repeat everything; %(default)s")
    much.add_argument("--timeout", type=float, default=600.0, metavar="S", help="of one request; %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw the last round into this image; needs matplotlib")
    arguments = parser.parse_args(words)
    if bool(arguments.base_url) + bool(arguments.start) > 1:
        parser.error("--base-url and --start exclude each other")
    if not (arguments.base_url or arguments.start or arguments.inprocess):
        parser.error("one of --base-url, --start and --inprocess is needed")
    if arguments.rate is not None and arguments.rate <= 0:
        parser.error("--rate must be positive")
    if arguments.requests is None and arguments.seconds is None:
        arguments.requests = 100
    if arguments.rate is None and arguments.concurrency is None:
        arguments.concurrency = 8
    return arguments


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise ValueError(text)
    return count


def main() -> int:
    arguments = parse(sys.argv[1:])
    try:
        asyncio.run(run(arguments))
    except (CalibrationError, ServerError, ValueError) as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
