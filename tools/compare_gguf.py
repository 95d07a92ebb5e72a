"""Compare the logits of small mixtures of experts in GGUF files with those of llama.cpp.

    python tools/compare_gguf.py        exit status 1 where they differ by more than 1e-4 of the largest

Needs ``llama-cpp-python`` and ``gguf``. Two models are left as llama.cpp computes them otherwise: gpt-oss without YaRN,
whose blend it rounds to whole pairs, and DeepSeek-V2 without groups of experts, which it chooses by their best two.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests" / "conformance")]

from test_gguf_experts import PROMPT, load, logits, rope_factors  # noqa: E402

from support.gguf_moe import write_moe_gguf  # noqa: E402
from support.tiny_models import CASES, TinyModel  # noqa: E402

TOLERANCE = 1e-4
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen2_moe": {"decoder_sparse_step": 1},  # llama.cpp knows no layers without experts in Qwen's
    "qwen3_moe": {"mlp_only_layers": []},
    "gpt_oss": {"rope_scaling": {}},
    "deepseek_v2_lite": {"num_hidden_layers": 27},  # by which llama.cpp knows it
    "deepseek_v2": {"n_group": 1, "topk_group": 1},
    "deepseek_v3": {},
    "llama4_text": {},
}
"""Names of tiny models, and what is changed in their configurations."""


def difference(name: str, changes: dict[str, Any], directory: Path) -> float:
    """The largest difference of a position's logits, over its largest logit."""
    case = CASES[name]
    model = TinyModel(name, {**case.config, **changes}, case.seed)
    path = write_moe_gguf(
        directory / f"{name}.gguf", model.config, model.weights(), rope_factors=rope_factors(dict(model.config))
    )
    ours = logits(*load(path))
    theirs = llama_cpp.Llama(str(path), logits_all=True, n_ctx=128, type_k=0, type_v=0, flash_attn=False, verbose=False)
    theirs.eval(PROMPT)
    scores = np.array(theirs.scores[: len(PROMPT)])
    theirs.close()
    return float((np.abs(scores - ours).max(axis=1) / np.abs(ours).max(axis=1)).max())


def main() -> int:
    """Compare all models."""
    print(f"llama-cpp-python {llama_cpp.__version__}")
    worst = 0.0
    with tempfile.TemporaryDirectory() as directory:
        for name, changes in MODELS.items():
            value = difference(name, changes, Path(directory))
            worst = max(worst, value)
            print(f"{name}: {value:.1e}")
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
