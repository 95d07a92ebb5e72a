"""Speed of the native sampler: microseconds per row, by kernel table and kind of draw.

    python benchmarks/sampling.py --vocab 151936 --rows 1 16

Prints a table and, with ``--json``, writes the same figures. Asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from windlass.native import cpu_info
from windlass.native.sampling import RowSampler, SamplingRow, SequenceSampler

DRAWS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top_k 40": {"top_k": 40},
    "top_p 0.95": {"top_p": 0.95},
    "min_p 0.05": {"min_p": 0.05},
    "all three": {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.7},
    "penalties": {"top_p": 0.95, "presence_penalty": 0.5, "repetition_penalty": 1.1},
    "flat, top_p 0.95": {"top_p": 0.95, "temperature": 50.0},
}


def microseconds(kernels: str, vocab: int, rows: int, draw: dict[str, Any], num_logprobs: int | None) -> float:
    """Median time per row of one call."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.5, (rows, vocab)).astype(np.float32)
    logits[:, rng.integers(0, vocab, 300)] += 14  # a few hundred tokens hold nearly all of the weight
    sampler = RowSampler(vocab, kernels=kernels)
    sequences = [SequenceSampler(**draw, seed=i) for i in range(rows)]
    for sequence in sequences:
        sequence.follow(rng.integers(0, vocab, 1000).tolist(), 500)
    times = []
    for position in range(60):
        batch = [SamplingRow(sequence, position, num_logprobs) for sequence in sequences]
        begin = time.perf_counter()
        sampler.sample_rows(logits, batch)
        times.append((time.perf_counter() - begin) / rows * 1e6)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--kernels", nargs="+", default=list(cpu_info().kernels))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures = []
    for kernels in arguments.kernels:
        for rows in arguments.rows:
            for name, draw in DRAWS.items():
                for num_logprobs in (None, 5):
                    label = name if num_logprobs is None else f"{name}, {num_logprobs} logprobs"
                    took = microseconds(kernels, arguments.vocab, rows, draw, num_logprobs)
                    print(f"{kernels:10} {rows:3} rows  {label:28} {took:8.1f} us/row")
                    figures.append({"kernels": kernels, "rows": rows, "draw": label, "microseconds_per_row": took})
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
