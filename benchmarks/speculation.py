"""What speculation brings: tokens per second with and without drafts, and how many drafts are accepted.

    python benchmarks/speculation.py --model DIR --quantization q4f16_1 --tokens 128

Two engines of the same model, one that drafts and one that does not, answer the same prompts in turn; the ratio is the
median over the pairs. ``loop`` answers greedily with four tokens only, which soon repeat: it shows what accepted drafts
bring, and says nothing about how many are accepted in real text. ``copy`` is greedy after a prompt that repeats itself.
``noise`` samples at a high temperature: what speculation costs where it never pays. Asserts nothing; fails if the two
engines differ in a single token.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from windlass import EngineConfig, MLCEngine

CASES: dict[str, dict[str, Any]] = {
    "loop": {"temperature": 0.0, "logit_bias": {str(token_id): 100.0 for token_id in range(400, 404)}},
    "copy": {"temperature": 0.0},
    "noise": {"temperature": 2.0, "seed": 1},
}


def prompts_of(case: str, count: int, length: int) -> list[list[int]]:
    """Token ids: a stretch again and again, or ids by chance; another one for each of ``count`` sequences."""
    chance = random.Random(0)  # noqa: S311
    period = length if case == "noise" else 24
    stretches = [[chance.randrange(300, 600) for _ in range(period)] for _ in range(count)]
    return [(stretch * length)[:length] for stretch in stretches]


def answer(engine: MLCEngine, prompts: list[list[int]], tokens: int, draw: dict[str, Any]) -> tuple[float, list[str]]:
    """Seconds and texts of one call."""
    begin = time.perf_counter()
    response = engine.completions.create(
        prompt=prompts, max_tokens=tokens, debug_config={"ignore_eos": True}, stream=False, **draw
    )
    return time.perf_counter() - begin, [choice.text for choice in response.choices]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory; the demo model by default")
    parser.add_argument("--quantization")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--prompt", type=int, default=96, help="tokens of each prompt")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    config = {
        "model": arguments.model,
        "quantization": arguments.quantization,
        "num_threads": arguments.threads,
        "max_num_sequence": max(arguments.sequences),
    }
    figures = []
    plain = MLCEngine(engine_config=EngineConfig(**config, speculative_mode="disable"))
    with plain, MLCEngine(engine_config=EngineConfig(**config)) as drafting:
        for case, draw in CASES.items():
            for count in arguments.sequences:
                prompts = prompts_of(case, count, arguments.prompt)
                pairs = []
                before = drafting.metrics()
                for _ in range(arguments.rounds + 1):
                    without, expected = answer(plain, prompts, arguments.tokens, draw)
                    with_drafts, texts = answer(drafting, prompts, arguments.tokens, draw)
                    if texts != expected:
                        raise SystemExit(f"{case}: the drafts have changed the answer")
                    pairs.append((without, with_drafts))
                pairs = pairs[1:]  # the first of each filled the prefix cache and measured the steps
                metrics = drafting.metrics()
                drafted = metrics.draft_tokens_sum - before.draft_tokens_sum
                accepted = metrics.accepted_draft_tokens_sum - before.accepted_draft_tokens_sum
                tokens = count * arguments.tokens
                figure = {
                    "case": case,
                    "sequences": count,
                    "tokens_per_s_without": tokens / statistics.median(without for without, _ in pairs),
                    "tokens_per_s_with": tokens / statistics.median(seconds for _, seconds in pairs),
                    "ratio": statistics.median(without / seconds for without, seconds in pairs),
                    "drafted_per_token": drafted / (tokens * (arguments.rounds + 1)),
                    "acceptance": accepted / drafted if drafted else 0.0,
                }
                figures.append(figure)
                print(
                    f"{case:6} {count:2} sequences  {figure['tokens_per_s_without']:8.1f} tok/s without  "
                    f"{figure['tokens_per_s_with']:8.1f} with  x{figure['ratio']:.3f}  "
                    f"{figure['drafted_per_token']:.2f} drafts per token, {figure['acceptance']:.0%} accepted",
                    flush=True,
                )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
