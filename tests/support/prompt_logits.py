"""What a model on the disk makes of a prompt, in one step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np

from windlass import EngineConfig
from windlass.program.executor import PAGE_SIZE, Batch
from windlass.serve.build import load_model


def prompt_logits(path: Path, ids: Sequence[int], executor: Literal["native", "reference"] = "native") -> Any:
    """The logits of all positions of ``ids``, float32 [T, vocab], of the model at ``path``, loaded as by an engine."""
    config = EngineConfig(
        executor=executor, kv_cache_dtype="f32", pack_cache=False, max_total_sequence_length=256, verbose=False
    )
    pages = -(-len(ids) // PAGE_SIZE)
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
