"""What all drivers share: the measurements, in terms of the few things an engine can be asked to do.

Runs in each engine's own Python, and its imports count in the time to the first token: standard library only, and
little of it.
"""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from typing import Any

TEXT = "The harbour was quiet at dawn, and the first boats came in slowly."


class UncountableError(Exception):
    """The engine's output did not show where each token began; another prompt may."""


class Driver:
    """One engine with one model, in this process. Opened by ``__init__``; the process ends without closing it.

    ``request`` holds what the parent asks for: ``model`` (the engine's own files), ``threads``, ``options``, and of
    the measurement ``sequences`` (at the same time), ``tokens`` (most of one sequence), ``prefix_cache`` and
    ``one_shot`` (a single short prompt: nothing need be reserved for more).
    """

    def __init__(self, request: dict[str, Any]) -> None:
        raise NotImplementedError

    @staticmethod
    def version() -> str:
        """Name and version of what runs, told without loading a model."""
        raise NotImplementedError

    @staticmethod
    def prepare(source: str, target: str, options: dict[str, Any]) -> None:
        """Make the engine's own model files from a Hugging Face directory."""
        raise NotImplementedError

    def generate(self, prompts: list[list[int]], count: int) -> tuple[float, float]:
        """Generate ``count`` tokens greedily after each prompt, all at once, never ending early.

        Returns:
            (seconds until all prompts have their first token, seconds from there until all have their last).
        """
        raise NotImplementedError

    def first_of_text(self, text: str) -> None:
        """Generate one token after a text."""
        raise NotImplementedError

    def extend(self, prefix: list[int], tail: list[int]) -> float:
        """Seconds to the first token after ``prefix + tail`` when ``prefix`` was computed by an earlier call."""
        return self.generate([prefix + tail], 1)[0]


def prompt_ids(length: int, seed: int) -> list[int]:
    """A prompt that shares no prefix with those of other seeds."""
    return [1000 + (seed * 7717 + i * 7919) % 5003 for i in range(length)]


def seconds_since_start() -> float:
    """Seconds since the parent started this process: the interpreter's own start is in it."""
    return time.monotonic() - float(os.environ["WINDLASS_BENCH_STARTED"])


def peak_rss() -> float:
    """The most memory this process has had resident, mapped files included, in MiB."""
    try:
        with open("/proc/self/status") as status:  # noqa: PTH123  (pathlib is not imported here)
            for line in status:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def measure(driver: Driver, request: dict[str, Any]) -> dict[str, list[float]]:
    """Metric name -> figures of one measurement. First tokens are measured on a driver that was just opened."""
    kind, repeats = request["kind"], request["repeats"]
    if kind == "first_text":
        driver.first_of_text(TEXT)
        return {"first_text": [seconds_since_start()]}
    if kind == "first_ids":
        driver.generate([prompt_ids(16, 0)], 1)
        return {"first_ids": [seconds_since_start()]}
    if kind == "memory":
        driver.generate([prompt_ids(512, 0)], 9)
        return {"peak_rss": [peak_rss()]}

    seeds = iter(range(1, 1000))

    def generate(sequences: int, length: int, count: int) -> tuple[float, float]:
        for _ in range(5):
            try:
                return driver.generate([prompt_ids(length, next(seeds)) for _ in range(sequences)], count)
            except UncountableError:
                continue
        raise UncountableError

    generate(1, 64, 4)
    figures: dict[str, list[float]] = {name: [] for name in request["metrics"]}
    prefix = prompt_ids(request["length"], 0)
    if kind == "cached":
        driver.extend(prefix, prompt_ids(16, next(seeds)))
    for _ in range(repeats):
        if kind == "cached":
            figures["first_cached"].append(driver.extend(prefix, prompt_ids(16, next(seeds))))
            continue
        sequences, length, steps = request["sequences"], request["length"], request["steps"]
        prefill, decode = generate(sequences, length, steps + 1)
        for name in figures:
            speed = sequences * length / prefill if name.startswith("prefill") else sequences * steps / decode
            figures[name].append(speed)
    return figures


def run(driver: type[Driver]) -> None:
    """Do what the request on the command line says, and print the result as a line that begins with RESULT."""
    request = json.loads(sys.argv[1])
    if request["kind"] == "version":
        result: object = driver.version()
    elif request["kind"] == "prepare":
        driver.prepare(request["source"], request["target"], request["options"])
        result = None
    else:
        result = measure(driver(request), request)
    print("RESULT " + json.dumps(result), flush=True)
    # Without the engines' own ends, which are not measured and not always clean.
    os._exit(0)
