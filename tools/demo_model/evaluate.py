"""Greedy exact match per skill on held-out prompts.

`python tools/demo_model/evaluate.py DIRECTORY` asks the PyTorch model, `--backend windlass` the engine.  The chat
template in the directory is checked against the training text first.
"""

import argparse
import json
from pathlib import Path

from backends import BACKENDS, Backend
from chat_format import check_chat_template
from probes import PROBES, draw_probes
from tokenizer import letter_pieces
from tokenizers import Tokenizer

STORY_TOKENS = 320
OTHER_TOKENS = 96


def evaluate(
    backend: Backend, names: list[str], count: int, pieces: list[str], seed: int, show: int
) -> dict[str, float]:
    """The share of right answers per probe in percent; prints each, with up to `show` wrong answers."""
    shares: dict[str, float] = {}
    for name in names:
        probes = draw_probes(name, count, pieces, seed)
        prompts = [probe.prompt for probe in probes]
        answers = backend.generate(prompts, STORY_TOKENS if name in ("story", "free_story") else OTHER_TOKENS)
        wrong = [(probe, answer) for probe, answer in zip(probes, answers, strict=True) if not probe.accepts(answer)]
        shares[name] = round(100 * (1 - len(wrong) / len(probes)), 1)
        print(f"{name:13s} {shares[name]:5.1f}  of {len(probes)}", flush=True)
        for probe, answer in wrong[:show]:
            print(f"      {probe.prompt.messages[-1]['content'][-90:]!r}\n        expected {probe.expected!r}")
            print(f"        answered {answer!r}", flush=True)
    return shares


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="the model directory")
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="torch")
    parser.add_argument("--count", type=int, default=200, help="prompts per probe; stories take an eighth")
    parser.add_argument("--seed", type=int, default=77, help="another seed draws other prompts")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print per probe")
    parser.add_argument("--probes", nargs="+", choices=PROBES, default=list(PROBES), metavar="NAME")
    arguments = parser.parse_args()
    tokenizer_config = json.loads((arguments.directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    check_chat_template(tokenizer_config["chat_template"])
    # Words of one vocabulary piece are drawn for the probes as for the training, so both need the tokenizer.
    pieces = letter_pieces(Tokenizer.from_file(str(arguments.directory / "tokenizer.json")))
    backend = BACKENDS[arguments.backend](arguments.directory)
    try:
        shares = evaluate(backend, arguments.probes, arguments.count, pieces, arguments.seed, arguments.show)
    finally:
        backend.close()
    print(f"mean {sum(shares.values()) / len(shares):.1f}")


if __name__ == "__main__":
    main()
