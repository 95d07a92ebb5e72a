"""Compute with Hugging Face transformers what the tiny random models of the tests must answer.

    python tools/make_goldens.py            write tests/conformance/goldens
    python tools/make_goldens.py --check    compute again and compare with the files that are there
    python tools/make_goldens.py --seeds 20 exaone4   say which of the next 20 seeds of a model will do; write nothing

Needs the ``oracle`` extra (torch and transformers). Each file holds, for several prompts, the greedy continuation and
the float32 logits of some positions. Models are run over the whole sequence at once and without a cache. Two kinds of
rope have angles that depend on how much is fed at once. "dynamic" is fed token by token, which Windlass follows.
"longrope" is fed sequences as long as the context of the tests, by which Windlass chooses its factors; what comes after
a token does not change its logits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from support.tiny_embedding import EMBEDDING_CASES  # noqa: E402
from support.tiny_models import CASES, TinyModel, write_hf_directory  # noqa: E402

GOLDENS = ROOT / "tests" / "conformance" / "goldens"
PROMPT_LENGTHS = (5, 17, 33, 48)
NEW_TOKENS = 64
CONTEXT_LENGTH = 128
SMALLEST_GAP = 4e-4
"""Between the two best logits, over the largest one: nearer ties would make greedy tokens a matter of rounding."""

ROPE_POSITIONS = (0, 1, 2, 31, 1000, 8191, 8192, 20000, 131071)
ROPES: dict[str, dict[str, Any]] = {
    "default": {"max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "linear": {
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    },
    "yarn": {
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    },
    "yarn-mscale": {
        "max_position_embeddings": 163840,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "mscale": 0.9,
            "mscale_all_dim": 0.7,
            "truncate": False,
        },
    },
    "llama3": {
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "dynamic": {
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    },
}
"""Rotary embeddings of the size that real models have; keys of a Llama config.json with heads of 128 columns."""


class TieError(Exception):
    """Greedy tokens of a model are a matter of rounding."""


def prompts(model: TinyModel) -> list[list[int]]:
    """Random token ids, the same for every machine."""
    raw = np.random.PCG64(1000 + model.seed).random_raw(sum(PROMPT_LENGTHS))
    ids = (np.asarray(raw) >> np.uint64(40)) % np.uint64(model.config["vocab_size"])
    ends = np.cumsum(PROMPT_LENGTHS)
    return [ids[end - length : end].tolist() for end, length in zip(ends, PROMPT_LENGTHS, strict=True)]


def rope_type(model: Any) -> str | None:
    """The type of the rotary embedding, that of the layers without a window where there are several."""
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return parameters.get("full_attention", parameters).get("rope_type")


def all_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """Float32 logits of every position [T, vocab]."""
    if rope_type(model) == "longrope":
        padded = tokens + [0] * (CONTEXT_LENGTH - len(tokens))
        return model(torch.tensor([padded]), use_cache=False).logits[0, : len(tokens)]
    if rope_type(model) != "dynamic":
        return model(torch.tensor([tokens]), use_cache=False).logits[0]
    rows, cache = [], transformers.DynamicCache()
    for token in tokens:
        rows.append(model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1])
    return torch.stack(rows)


def continue_greedily(model: Any, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """The greedy tokens after ``prompt``, and the logits of all positions but the last token's."""
    tokens = list(prompt)
    if rope_type(model) == "dynamic":
        cache, waiting = transformers.DynamicCache(), list(prompt)
        while len(tokens) < len(prompt) + NEW_TOKENS:
            logits = model(torch.tensor([[waiting.pop(0)]]), past_key_values=cache, use_cache=True).logits[0, -1]
            if not waiting:
                waiting.append(int(logits.argmax()))
                tokens += waiting
    else:
        while len(tokens) < len(prompt) + NEW_TOKENS:
            tokens.append(int(all_logits(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :], all_logits(model, tokens[:-1])


@torch.no_grad()
def compute(case: TinyModel) -> dict[str, np.ndarray]:
    """The golden file's arrays for one model."""
    result: dict[str, Any] = {"digest": case.digest()}
    with tempfile.TemporaryDirectory() as directory:
        path = write_hf_directory(case, Path(directory))
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        for i, prompt in enumerate(prompts(case)):
            tokens, logits = continue_greedily(model, prompt)
            best = logits[len(prompt) - 1 :].topk(2).values
            gap = ((best[:, 0] - best[:, 1]) / logits.abs().max()).min().item()
            print(f"  prompt {i}: {len(set(tokens))} different tokens, smallest gap {gap:.1e}")
            if gap < SMALLEST_GAP:
                raise TieError(
                    f"{case.name}: a gap of {gap:.1e} is too near a tie; give the model another seed (--seeds)"
                )
            rows = np.array([0, len(prompt) // 2, len(prompt) - 1, len(logits) - 1])
            result |= {f"prompt_{i}": np.array(prompt), f"tokens_{i}": np.array(tokens), f"rows_{i}": rows}
            result[f"logits_{i}"] = logits[rows].numpy()
    return {key: np.asarray(value) for key, value in result.items()}


@torch.no_grad()
def compute_ropes() -> dict[str, np.ndarray]:
    """cos and sin of the rotary embeddings in ``ROPES``, [positions, 64] each."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    result = {}
    for name, changes in ROPES.items():
        config = transformers.LlamaConfig(hidden_size=1024, num_attention_heads=8, head_dim=128, **changes)
        rows = []
        for position in ROPE_POSITIONS:
            rope = LlamaRotaryEmbedding(config)
            cos, sin = rope(torch.zeros(1), torch.tensor([[position]]))
            rows.append(torch.stack((cos[0, 0, :64], sin[0, 0, :64])))
        result[name] = torch.stack(rows).numpy()
    return result


@torch.no_grad()
def compute_embeddings(case: TinyModel) -> dict[str, np.ndarray]:
    """Hidden states of the last layer, [tokens, width], of several prompts."""
    result: dict[str, Any] = {"digest": case.digest()}
    with tempfile.TemporaryDirectory() as directory:
        path = write_hf_directory(case, Path(directory))
        model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        for i, prompt in enumerate(prompts(case)):
            hidden = model(torch.tensor([prompt])).last_hidden_state[0].numpy()
            result |= {f"prompt_{i}": np.array(prompt), f"hidden_{i}": hidden}
    return {key: np.asarray(value) for key, value in result.items()}


def compare(name: str, new: dict[str, np.ndarray]) -> list[str]:
    """What differs between ``new`` and the file of that name."""
    with np.load(GOLDENS / f"{name}.npz") as old:
        if set(old.files) != set(new):
            return [f"{name}: the file holds other arrays"]
        problems = []
        for key, value in new.items():
            if value.dtype.kind == "f":
                error = np.abs(value - old[key]).max() / np.abs(value).max()
                if not error < 1e-5:
                    problems.append(f"{name}: {key} differs by {error:.1e}")
            elif not np.array_equal(value, old[key]):
                problems.append(f"{name}: {key} differs")
        return problems


def find_seed(case: TinyModel, count: int) -> int | None:
    """The first of ``count`` seeds, from the model's on, with which no greedy token is near a tie."""
    for seed in range(case.seed, case.seed + count):
        try:
            compute(replace(case, seed=seed))
        except TieError as error:
            print(f"seed {seed}: {error}")
        else:
            return seed
    return None


def main() -> int:
    """Write or check all files."""
    parser = argparse.ArgumentParser(description="Golden files of the tiny models, from Hugging Face transformers.")
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    parser.add_argument("--seeds", type=int, metavar="N", help="say which of N seeds will do, from the model's own on")
    parser.add_argument("cases", nargs="*", help="names of models; all when none is given")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    torch.set_num_threads(1)
    GOLDENS.mkdir(parents=True, exist_ok=True)
    problems = []
    jobs = {name: lambda case=case: compute(case) for name, case in CASES.items()} | {"rope": compute_ropes}
    jobs |= {name: lambda case=case: compute_embeddings(case) for name, case in EMBEDDING_CASES.items()}
    for name in arguments.cases or jobs:
        print(name)
        if arguments.seeds:
            print(f"{name}: seed {find_seed(CASES[name], arguments.seeds)}")
            continue
        new = jobs[name]()
        if arguments.check:
            problems += compare(name, new)
        else:
            np.savez_compressed(GOLDENS / f"{name}.npz", **new)
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except TieError as error:
        raise SystemExit(str(error)) from None
