"""GGUF files of every family and every type of block against llama.cpp, whose answers are in goldens/llama_cpp.npz."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.llama_cpp_files import BLOCK_FILES, FILES, PROMPT, ROWS
from support.prompt_logits import prompt_logits


@cache
def goldens() -> dict[str, Any]:
    with np.load(Path(__file__).parent / "goldens" / "llama_cpp.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", FILES)
def test_the_tokens_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    """They are, up to where the two best logits are nearer than twice what the logits differ by."""
    expected, tokens = goldens()[f"{name}/logits"], goldens()[f"{name}/tokens"].tolist()
    ours = prompt_logits(FILES[name](tmp_path / "m.gguf"), [*PROMPT, *tokens[:-1]])
    error = np.abs(ours[list(ROWS)] - expected).max()
    assert error <= (0.2 if name in BLOCK_FILES else 2e-3) * expected.std()
    for position, token in enumerate(tokens, start=len(PROMPT) - 1):
        best = np.sort(ours[position])[-2:]
        if best[1] - best[0] < 2 * error:
            break
        assert ours[position].argmax() == token, f"token {position - len(PROMPT) + 1}"
