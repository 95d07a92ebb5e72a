"""What a draft model brings: tokens per second with and without it, by how many of its guesses are right.

    python benchmarks/draft_model.py --models DIR --tokens 128

The models, of 1.2B and 0.1B, are made in DIR unless they are there (3.3 GB). Their weights are random, but both write
the same text, of which the draft model knows as many tokens as each row says; see ``comparison/linked.py``. The
engines, one of them without drafts, answer the same prompts in turn; ratios are medians over the turns. Before that
come the times of the pieces: a step of the model with 0, 1, 2 .. drafts, a step of the draft model, and the latter with
what the engine adds to it (laying the token out, drawing the next one). From these follows which part of the guesses
must be right for one to pay. Asserts nothing; fails if two engines differ in a single token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from comparison.linked import Links, make_pair
from windlass import EngineConfig, MLCEngine
from windlass.engine.batch import Span, lay_out
from windlass.native.sampling import RowSampler, SamplingRow, SequenceSampler
from windlass.program.executor import PAGE_SIZE, Executor
from windlass.serve.build import load_model

ACCEPTANCES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0)
MOST_DRAFTS = 8


def fastest(run: Callable[[], object], repeats: int) -> float:
    """Seconds of one run: the median of the faster half, which nothing else has slowed."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(sorted(times)[: (repeats + 1) // 2])


def pieces(path: Path, config: EngineConfig, context: int, repeats: int) -> dict[str, Any]:
    """Seconds of the steps that speculation is made of, behind ``context`` tokens."""
    loaded = load_model("model", path, config)
    try:
        model, draft = (executor for executor in (loaded.executor, loaded.draft_executor) if executor is not None)
        pages = list(range((context + MOST_DRAFTS) // PAGE_SIZE + 1))
        rows, sequence = RowSampler(loaded.active_vocab_size), SequenceSampler(temperature=0.0)

        def step(executor: Executor, num_tokens: int) -> float:
            batch = lay_out([Span([300] * num_tokens, context, pages, num_tokens)])
            return fastest(lambda: executor.run(batch), repeats)

        def propose() -> None:
            logits = draft.run(lay_out([Span([300], context, pages, 1)]))
            rows.sample_rows(logits, [SamplingRow(sequence, context + 1)])

        for executor in (model, draft):
            executor.run(lay_out([Span([300] * context, 0, pages, 1)]))
        steps = [step(model, 1 + drafts) for drafts in range(MOST_DRAFTS + 1)]
        alone, proposal = step(draft, 1), fastest(propose, repeats)
    finally:
        loaded.close()
    return {"steps": steps, "draft": alone, "proposal": proposal, "break_even": (steps[1] + proposal) / steps[0] - 1}


def answer(engine: MLCEngine, prompts: list[list[int]], tokens: int) -> tuple[float, list[str]]:
    """Seconds and texts of one call."""
    begin = time.perf_counter()
    response = engine.completions.create(
        prompt=prompts, max_tokens=tokens, temperature=0.0, debug_config={"ignore_eos": True}, stream=False
    )
    return time.perf_counter() - begin, [choice.text for choice in response.choices]


def compare(
    engines: dict[str, MLCEngine], links: Links, number: int, count: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The figures of each engine but the first, for one stretch of the text and ``count`` sequences."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    before = {name: engine.metrics() for name, engine in engines.items()}
    for turn in range(arguments.rounds):
        prompts = [
            links.prompt(number, turn * count + i, arguments.prompt, arguments.tokens + arguments.prompt)
            for i in range(count)
        ]
        expected = None
        for name, engine in engines.items():
            taken, texts = answer(engine, prompts, arguments.tokens)
            if texts != (expected := expected or texts):
                raise SystemExit("the drafts have changed the answer")
            seconds[name].append(taken)
    plain, *others = engines
    tokens = count * arguments.tokens
    figures = []
    for name in others:
        after = engines[name].metrics()
        drafted = after.draft_tokens_sum - before[name].draft_tokens_sum
        accepted = after.accepted_draft_tokens_sum - before[name].accepted_draft_tokens_sum
        figures.append(
            {
                "right": ACCEPTANCES[number],
                "sequences": count,
                "drafts": name,
                "tokens_per_s_without": tokens / statistics.median(seconds[plain]),
                "tokens_per_s_with": tokens / statistics.median(seconds[name]),
                "ratio": statistics.median(a / b for a, b in zip(seconds[plain], seconds[name], strict=True)),
                "drafted_per_token": drafted / (tokens * arguments.rounds),
                "acceptance": accepted / drafted if drafted else 0.0,
            }
        )
    return figures


def line(figure: dict[str, Any]) -> str:
    return (
        f"{figure['right']:4.0%} right {figure['sequences']:2} sequences {figure['drafts']:>8} drafts  "
        f"{figure['tokens_per_s_without']:7.1f} tok/s without  {figure['tokens_per_s_with']:7.1f} with  "
        f"x{figure['ratio']:.3f}  {figure['drafted_per_token']:.2f} drafts per token, "
        f"{figure['acceptance']:.0%} accepted"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="directory of the two models")
    parser.add_argument("--quantization", default="q4f16_1")
    parser.add_argument("--lengths", type=int, nargs="*", default=[0, 2, 4], help="0 is as many drafts as pay")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    model, draft, links = make_pair(
        arguments.models, ACCEPTANCES, lambda done, total: print(f"\r{done / total:4.0%}", end="", flush=True)
    )
    longest = 2 * (arguments.prompt + arguments.tokens)
    settings: dict[str, Any] = {
        "model": str(model),
        "quantization": arguments.quantization,
        "num_threads": arguments.threads,
        "max_num_sequence": max(arguments.sequences),
        "max_single_sequence_length": longest,
        "max_total_sequence_length": (max(arguments.sequences) + 1) * longest,
        "verbose": False,
    }
    drafting = {"speculative_mode": "small_draft", "additional_models": [str(draft)]}
    parts = pieces(model, EngineConfig(**settings, **drafting), arguments.prompt, repeats=8 * arguments.rounds)
    step = parts["steps"][0]
    print("\rstep   " + "  ".join(f"{1e3 * seconds:.2f} ms with {i}" for i, seconds in enumerate(parts["steps"])))
    print(
        f"draft  {1e3 * parts['draft']:.2f} ms, {parts['draft'] / step:.1%} of a step; "
        f"{1e3 * parts['proposal']:.2f} ms with all that makes it a guess; "
        f"one guess pays when right {parts['break_even']:.0%} of the time"
    )
    configs = {"none": EngineConfig(**settings, speculative_mode="disable")}
    for length in arguments.lengths:
        configs[str(length) if length else "adaptive"] = EngineConfig(**settings, **drafting, spec_draft_length=length)
    figures = []
    with ExitStack() as stack:
        engines = {name: stack.enter_context(MLCEngine(engine_config=config)) for name, config in configs.items()}
        for count in arguments.sequences:
            for number in range(len(ACCEPTANCES)):
                for figure in compare(engines, links, number, count, arguments):
                    figures.append(figure)
                    print(line(figure), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"pieces": parts, "engines": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
