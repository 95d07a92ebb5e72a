"""GGUF files of every family and every type of block against llama.cpp, whose answers are in goldens/llama_cpp.npz."""

from __future__ import annotations

from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.llama_cpp_files import BLOCK_FILES, FILES, PROMPT, ROWS
from windlass import EngineConfig
from windlass.program.executor import Batch
from windlass.serve.build import load_model


@cache
def goldens() -> dict[str, Any]:
    with np.load(Path(__file__).parent / "goldens" / "llama_cpp.npz") as file:
        return dict(file)


def logits(path: Path, tokens: list[int]) -> Any:
    """Of all positions of the prompt and what llama.cpp wrote after it."""
    config = EngineConfig(kv_cache_dtype="f32", pack_cache=False, max_total_sequence_length=256, verbose=False)
    ids = [*PROMPT, *tokens[:-1]]
    pages = -(-len(ids) // 16)
    with closing(load_model("m", path, config)) as model:
        batch = Batch(
            token_ids=np.array(ids, dtype=np.int32),
            positions=np.arange(len(ids), dtype=np.int32),
            token_starts=np.array([0, len(ids)], dtype=np.int32),
            page_ids=np.arange(pages, dtype=np.int32),
            page_starts=np.array([0, pages], dtype=np.int32),
            logit_rows=np.arange(len(ids), dtype=np.int32),
        )
        return np.array(model.executor.run(batch))


@pytest.mark.parametrize("name", FILES)
def test_the_tokens_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    """They are, up to where the two best logits are nearer than twice what the logits differ by."""
    expected, tokens = goldens()[f"{name}/logits"], goldens()[f"{name}/tokens"].tolist()
    ours = logits(FILES[name](tmp_path / "m.gguf"), tokens)
    error = np.abs(ours[list(ROWS)] - expected).max()
    assert error <= (0.2 if name in BLOCK_FILES else 2e-3) * expected.std()
    for position, token in enumerate(tokens, start=len(PROMPT) - 1):
        best = np.sort(ours[position])[-2:]
        if best[1] - best[0] < 2 * error:
            break
        assert ours[position].argmax() == token, f"token {position - len(PROMPT) + 1}"
