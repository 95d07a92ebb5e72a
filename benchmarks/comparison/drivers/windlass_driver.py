"""Windlass through its public API."""

from __future__ import annotations

import time
from typing import Any

import child

from windlass import EngineConfig, MLCEngine

_IGNORE_EOS = {"debug_config": {"ignore_eos": True}}


class Windlass(child.Driver):
    """``MLCEngine`` with weights quantized while loading; speculation is off, since random models repeat themselves."""

    def __init__(self, request: dict[str, Any]) -> None:
        config = EngineConfig(
            num_threads=request["threads"],
            max_num_sequence=request["sequences"],
            max_single_sequence_length=request["tokens"],
            max_total_sequence_length=request["sequences"] * request["tokens"],
            prefix_cache_mode="radix" if request["prefix_cache"] else "disable",
            speculative_mode="disable",
            verbose=False,
            **request["options"],
        )
        self._completions = MLCEngine(request["model"], engine_config=config).completions

    @staticmethod
    def version() -> str:
        """Release, instruction set, and a digest of the compiled core and all Python files."""
        import hashlib
        from pathlib import Path

        import windlass
        from windlass.native import _core, cpu_info

        digest = hashlib.sha256(Path(_core.__file__).read_bytes())
        for path in sorted(Path(windlass.__file__).parent.rglob("*.py")):
            digest.update(path.read_bytes())
        return f"windlass {windlass.__version__} ({digest.hexdigest()[:8]}, {cpu_info().kernels[-1]})"

    def generate(self, prompts: list[list[int]], count: int) -> tuple[float, float]:
        begin = first = time.perf_counter()
        streams = [
            self._completions.create(
                prompt=prompt, max_tokens=count, temperature=0.0, stream=True, extra_body=_IGNORE_EOS
            )
            for prompt in prompts
        ]
        # One chunk has one token, as long as each token completes a character.
        for step in range(count):
            for stream in streams:
                chunk = next(stream, None)
                if chunk is None or not chunk.choices[0].text:
                    raise child.UncountableError
            if step == 0:
                first = time.perf_counter()
        end = time.perf_counter()
        for stream in streams:
            if any(chunk.choices[0].text for chunk in stream):
                raise child.UncountableError
        return first - begin, end - first

    def first_of_text(self, text: str) -> None:
        self._completions.create(prompt=text, max_tokens=1, temperature=0.0, extra_body=_IGNORE_EOS)


if __name__ == "__main__":
    child.run(Windlass)
