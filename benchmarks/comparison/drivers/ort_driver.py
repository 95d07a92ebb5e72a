"""ONNX Runtime GenAI."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import child


class OrtGenAI(child.Driver):
    """One ``Generator`` per batch; its batches begin and end together."""

    def __init__(self, request: dict[str, Any]) -> None:
        import numpy as np
        import onnxruntime_genai

        self._np: Any = np
        self._api: Any = onnxruntime_genai
        self._model = onnxruntime_genai.Model(request["model"])
        self._tokens = request["tokens"]
        self._kept: Any = None

    @staticmethod
    def version() -> str:
        import importlib.metadata

        parts = ("onnxruntime-genai", "onnxruntime")
        return ", ".join(f"{part} {importlib.metadata.version(part)}" for part in parts)

    def _generator(self, sequences: int, length: int) -> Any:
        parameters = self._api.GeneratorParams(self._model)
        parameters.set_search_options(max_length=length, batch_size=sequences, do_sample=False)
        return self._api.Generator(self._model, parameters)

    def generate(self, prompts: list[list[int]], count: int) -> tuple[float, float]:
        begin = time.perf_counter()
        wanted = len(prompts[0]) + count
        generator = self._generator(len(prompts), wanted + 1)
        generator.append_tokens(self._np.array(prompts, dtype=self._np.int32))
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(count - 1):
            generator.generate_next_token()
        end = time.perf_counter()
        if len(generator.get_sequence(0)) != wanted:
            raise RuntimeError(f"{len(generator.get_sequence(0))} tokens instead of {wanted}")
        return first - begin, end - first

    def first_of_text(self, text: str) -> None:
        ids = self._api.Tokenizer(self._model).encode(text)
        self.generate([list(ids)], 1)

    def extend(self, prefix: list[int], tail: list[int]) -> float:
        begin = time.perf_counter()
        if self._kept is None:
            self._kept = self._generator(1, self._tokens)
            self._kept.append_tokens(self._np.array([prefix], dtype=self._np.int32))
        else:
            self._kept.rewind_to(len(prefix))
        self._kept.append_tokens(self._np.array([tail], dtype=self._np.int32))
        self._kept.generate_next_token()
        return time.perf_counter() - begin

    @staticmethod
    def prepare(source: str, target: str, options: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", target]
        command += ["-e", "cpu", "-c", target + "-cache", *options["builder"]]
        subprocess.run(command, check=True)
        path = Path(target) / "genai_config.json"
        config = json.loads(path.read_text())
        session = config["model"]["decoder"]["session_options"]
        session["intra_op_num_threads"] = options["threads"]
        session["inter_op_num_threads"] = 1
        path.write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    child.run(OrtGenAI)
