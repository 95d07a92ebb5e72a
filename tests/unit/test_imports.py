"""What a first answer waits for: libraries that it does not need are not imported before it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from windlass.demo import model_directory as demo_model_directory

# importlib.metadata comes when pydantic makes a validator.
HEAVY = ("asyncio", "importlib.metadata", "jinja2", "numpy", "pydantic", "rich", "tokenizers")

SCRIPT = textwrap.dedent("""
    import json, sys

    before = set(sys.modules)

    def imported():
        return [name for name in json.loads(sys.argv[1]) if name in set(sys.modules) - before]

    from windlass.serve import kept_weights
    from windlass.text import text_pack
    from windlass import MLCEngine

    text_pack.LEAST_BYTES = kept_weights.LEAST_BYTES = 0
    seen = {}
    with MLCEngine(sys.argv[2], quantization="q4f16_1") as engine:
        seen["loaded"] = imported()
        engine.completions.create(prompt=[5, 6, 7], max_tokens=1)
        seen["ids"] = imported()
        engine.completions.create(prompt="Once", max_tokens=1)
        seen["text"] = imported()
    print(json.dumps(seen))
""")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The demo model, but its tokenizer cuts words as most do, so that it can be kept."""
    copied = shutil.copytree(demo_model_directory(), tmp_path / "model")
    tokenizer = json.loads((copied / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return copied


@pytest.fixture
def second_start(tmp_path: Path, model: Path) -> dict[str, list[str]]:
    """Which libraries were there at which point of a start that finds all in the cache."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(HEAVY), str(model)]
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WINDLASS_CACHE_DIR", str(tmp_path))
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    seen: dict[str, list[str]] = json.loads(done.stdout)
    return seen


def test_libraries_come_when_they_are_needed(second_start: dict[str, list[str]]) -> None:
    assert second_start == {
        "loaded": [],
        "ids": ["pydantic"],
        "text": ["pydantic"],
    }
