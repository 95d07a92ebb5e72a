"""OpenVINO GenAI: the continuous batching pipeline with paged attention, and ``LLMPipeline`` for first tokens."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import child


class OpenVino(child.Driver):
    """``LLMPipeline`` where a single prompt is asked for, since it reserves less."""

    def __init__(self, request: dict[str, Any]) -> None:
        import numpy as np
        import openvino
        import openvino_genai

        self._np: Any = np
        self._tensor: Any = openvino.Tensor
        self._api: Any = openvino_genai
        self._properties = {"INFERENCE_NUM_THREADS": request["threads"], "PERFORMANCE_HINT": "LATENCY"}
        self._properties |= request["options"].get("properties", {})
        self._pipeline: Any = None
        self._next_id = 0
        if request["one_shot"]:
            self._simple: Any = openvino_genai.LLMPipeline(request["model"], "CPU", **self._properties)
            return
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 1
        scheduler.max_num_batched_tokens = 4096
        scheduler.max_num_seqs = 32
        scheduler.enable_prefix_caching = request["prefix_cache"]
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(request["model"], scheduler, "CPU", self._properties)

    @staticmethod
    def version() -> str:
        import importlib.metadata

        return f"openvino-genai {importlib.metadata.version('openvino-genai')}"

    def _config(self, count: int) -> Any:
        return self._api.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)

    def _ids(self, prompt: list[int]) -> Any:
        return self._tensor(self._np.array([prompt], dtype=self._np.int64))

    def generate(self, prompts: list[list[int]], count: int) -> tuple[float, float]:
        begin = time.perf_counter()
        if self._pipeline is None:
            self._simple.generate(self._ids(prompts[0]), self._config(count))
            return time.perf_counter() - begin, 0.0
        handles = []
        for prompt in prompts:
            handles.append(self._pipeline.add_request(self._next_id, self._ids(prompt), self._config(count)))
            self._next_id += 1
        times = []
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            times.append(time.perf_counter())
        if len(times) != count:
            raise RuntimeError(f"{count} tokens took {len(times)} steps")
        return times[0] - begin, times[-1] - times[0]

    def first_of_text(self, text: str) -> None:
        self._simple.generate(text, self._config(1))

    @staticmethod
    def prepare(source: str, target: str, options: dict[str, Any]) -> None:
        command = [str(Path(sys.executable).parent / "optimum-cli"), "export", "openvino", "--model", source]
        command += ["--task", "text-generation-with-past", *options["export"], target]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    child.run(OpenVino)
