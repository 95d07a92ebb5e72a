"""Who answers the probes: the PyTorch model, or the engine through its public interface.

Each backend imports what it stands for when it is made, so that the engine can be evaluated where PyTorch is not
installed, and the other way round.
"""

import json
from pathlib import Path
from typing import Any, Protocol

from chat_format import MESSAGE_END, answer_text
from conversations import Conversation
from tokenizer import encode_prompt, token_id


class Backend(Protocol):
    """Greedy answers to a list of prompts."""

    def generate(self, prompts: list[Conversation], max_tokens: int) -> list[str]:
        """One answer per prompt, in their order."""
        ...

    def close(self) -> None:
        """Give back what the backend holds."""
        ...


class TorchBackend:
    """The model in PyTorch, in float32."""

    def __init__(self, directory: Path) -> None:
        import torch
        from export import load_model

        torch.set_num_threads(1)
        self.model, self.tokenizer = load_model(directory)
        self.end_id = token_id(self.tokenizer, MESSAGE_END)

    def generate(self, prompts: list[Conversation], max_tokens: int) -> list[str]:
        from generation import generate_greedily

        ids = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        answers = generate_greedily(self.model, ids, max_tokens, self.end_id)
        return [self.tokenizer.decode(answer, skip_special_tokens=False) for answer in answers]

    def close(self) -> None:
        """Nothing to give back."""


class WindlassBackend:
    """The engine, through `chat.completions.create` as a user calls it."""

    def __init__(self, directory: Path) -> None:
        from windlass import MLCEngine

        self.engine = MLCEngine(model=str(directory))

    def _answer(self, prompt: Conversation, max_tokens: int) -> str:
        options: dict[str, Any] = {"tools": prompt.tools} if prompt.tools else {}
        response = self.engine.chat.completions.create(
            messages=prompt.messages, temperature=0, max_tokens=max_tokens, stream=False, **options
        )
        message = response.choices[0].message
        calls = [
            {"function": {"name": call.function.name, "arguments": _as_text(call.function.arguments)}}
            for call in getattr(message, "tool_calls", None) or []
        ]
        return answer_text({"content": message.content or "", "tool_calls": calls})

    def generate(self, prompts: list[Conversation], max_tokens: int) -> list[str]:
        return [self._answer(prompt, max_tokens) for prompt in prompts]

    def close(self) -> None:
        self.engine.terminate()


def _as_text(arguments: str | dict[str, Any]) -> str:
    """Arguments of a call as JSON; an engine may hand them over parsed."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


BACKENDS: dict[str, type[TorchBackend] | type[WindlassBackend]] = {"torch": TorchBackend, "windlass": WindlassBackend}
