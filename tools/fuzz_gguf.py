"""Damage GGUF files at random and load them, down to a step of the native executor.

    python tools/fuzz_gguf.py --seconds 600 --seed 1

The files are the tests' own: a tiny model of every family and of every type of block. An input is one of them with some
bytes, numbers or strings of it changed, cut off or put twice. It must give a ``LoadError`` or a model whose step ends;
anything else is printed with the seed that repeats it, and the exit status is 1. A crash of the process names its seed
in the file that ``--log`` gives. Needs the ``gguf`` package.
"""

from __future__ import annotations

import argparse
import collections
import random
import resource
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from support.llama_cpp_files import FILES  # noqa: E402
from windlass import EngineConfig, LoadError  # noqa: E402
from windlass.program.executor import Batch  # noqa: E402
from windlass.serve.build import load_model  # noqa: E402

HEADER = 6000
"""Most changes are made in so many of the first bytes, where the counts, names and sizes are."""
LARGE = 1 << 30
"""A process that takes more than this has been led astray."""
CONFIG = EngineConfig(pack_cache=False, max_total_sequence_length=64, num_threads=1, verbose=False)
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return ``data`` with one to four changes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(HEADER, len(changed)) if rng.random() < 0.8 else len(changed))
        kind = rng.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + 4] = (rng.choice(INTERESTING) & 0xFFFFFFFF).to_bytes(4, "little")
        elif kind == 2:
            changed[at : at + 8] = rng.choice(INTERESTING).to_bytes(8, "little")
        elif kind == 3:
            changed[at : at + rng.randint(1, 16)] = rng.randbytes(rng.randint(1, 16))
        elif kind == 4:
            changed[at:at] = changed[at : at + rng.randint(1, 64)]
        else:
            del changed[rng.randrange(len(changed)) :]
        if not changed:
            break
    return bytes(changed)


def run(path: Path) -> str:
    """Load a file and run a step; return what came of it."""
    try:
        model = load_model("fuzzed", path, CONFIG)
    except LoadError:
        return "LoadError"
    except ValueError as error:
        # The settings of the engine, which is told a size, do not fit what the file says of its context.
        if "EngineConfig" in str(error):
            return "refused settings"
        raise
    with closing(model):
        tokens = np.arange(3, dtype=np.int32) % model.definition.vocab_size
        zero = np.zeros(1, dtype=np.int32)
        ends = np.array([0, 3], dtype=np.int32)
        model.executor.run(
            Batch(tokens, np.arange(3, dtype=np.int32), ends, zero, np.array([0, 1], np.int32), zero + 2)
        )
        model.text.decode([0, 1, 2])
    return "ran"


def main() -> int:
    """Damage and load until the time is up."""
    parser = argparse.ArgumentParser(description="Load damaged GGUF files.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="where the seed of the input in progress is written")
    arguments = parser.parse_args()
    results: collections.Counter[str] = collections.Counter()
    slowest, seed, problems = 0.0, arguments.seed, 0
    end = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as directory:
        files = [write(Path(directory) / f"{name}.gguf").read_bytes() for name, write in FILES.items()]
        path = Path(directory) / "input.gguf"
        while time.monotonic() < end:
            rng = random.Random(seed)
            path.write_bytes(damaged(rng.choice(files), rng))
            if arguments.log is not None:
                arguments.log.write_text(f"{seed}\n")
            begun = time.monotonic()
            try:
                results[run(path)] += 1
            except Exception as error:
                problems += 1
                print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
            slowest = max(slowest, time.monotonic() - begun)
            seed += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(f"{seed - arguments.seed} inputs of {len(files)} files: {dict(results)}, {problems} problems, crashes 0")
    print(f"slowest {slowest:.2f} s, {peak >> 20} MiB at most")
    return 1 if problems or peak > LARGE else 0


if __name__ == "__main__":
    raise SystemExit(main())
