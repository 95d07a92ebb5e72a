"""What is settled when a model is put together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.tiny_models import CASES
from windlass import EngineConfig, MLCEngine


@pytest.mark.parametrize(("head_dim", "kv_dtype"), [(256, "int16"), (288, "f16")])
def test_keys_of_wide_heads_are_not_coded(tmp_path: Path, head_dim: int, kv_dtype: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CASES["llama2"].config, "head_dim": head_dim}))
    config = EngineConfig(load_format="dummy", quantization="q4f16_1", verbose=False)
    with MLCEngine(str(tmp_path), engine_config=config) as engine:
        assert engine.engine_config.kv_cache_dtype == kv_dtype
