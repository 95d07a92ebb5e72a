"""Have llama.cpp answer the GGUF files of the tests, and keep its tokens and some logits.

    python tools/make_llama_cpp_goldens.py            write tests/conformance/goldens/llama_cpp.npz
    python tools/make_llama_cpp_goldens.py NAME...    answer only these anew

Needs llama-cpp-python (0.3.36 made the file that is there), gguf and what Windlass needs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from support.llama_cpp_files import FILES, NUM_TOKENS, PROMPT, ROWS  # noqa: E402

GOLDENS = ROOT / "tests" / "conformance" / "goldens" / "llama_cpp.npz"


def answer(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The greedy tokens after the prompt, and the logits of ``ROWS`` [rows, vocab]."""
    model = llama_cpp.Llama(
        str(path),
        n_ctx=256,
        n_batch=256,
        logits_all=True,
        verbose=False,
        n_threads=1,
        type_k=0,  # float32
        type_v=0,
        yarn_attn_factor=-1.0,  # what the file says
        yarn_beta_fast=-1.0,
        yarn_beta_slow=-1.0,
    )
    model.eval(PROMPT)
    tokens: list[int] = []
    while len(tokens) < NUM_TOKENS:
        tokens.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(tokens[-1:])
    return np.array(tokens, dtype=np.int32), np.array(model.scores[list(ROWS)], dtype=np.float32)


def main() -> int:
    """Write the file."""
    names = sys.argv[1:]
    arrays: dict[str, np.ndarray] = {}
    if names:
        with np.load(GOLDENS) as file:
            arrays = {key: array for key, array in file.items() if key.partition("/")[0] in FILES}
    for name in names or FILES:
        with tempfile.TemporaryDirectory() as directory:
            tokens, logits = answer(FILES[name](Path(directory) / "model.gguf"))
        print(name, tokens.tolist())
        arrays |= {f"{name}/tokens": tokens, f"{name}/logits": logits}
    np.savez_compressed(GOLDENS, **arrays)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
