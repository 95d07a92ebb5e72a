"""One conversation with an engine: its messages, the streaming of an answer, and the figures of what it cost."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import astuple, dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from windlass.errors import RequestAbortedError

if TYPE_CHECKING:
    from windlass.protocol.arguments import Message
    from windlass.serve.engine import MLCEngine


@dataclass(frozen=True)
class Figures:
    """What finished answers cost; an interrupted one is not counted, since its tokens were never reported."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds_to_first: float = 0.0
    seconds_after_first: float = 0.0

    def __add__(self, other: Figures) -> Figures:
        return Figures(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        mean_first = self.seconds_to_first / max(self.answers, 1)
        # The first token of each answer is paid for by the prompt.
        decoded = self.completion_tokens - self.answers
        rate = f"{decoded / self.seconds_after_first:.1f} tokens/s" if decoded > 0 < self.seconds_after_first else "-"
        return (
            f"{self.prompt_tokens} prompt tokens, {self.completion_tokens} answer tokens, "
            f"first after {mean_first:.2f} s, then {rate}"
        )


@dataclass
class Conversation:
    """The messages so far and how to answer the next one. For the main thread.

    Invariant: ``messages`` alternates between the user's and the assistant's, after the system prompt if there is one.
    """

    engine: MLCEngine
    system: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    """What ``chat.completions.create`` gets besides the messages: temperature, seed and so on."""

    def __post_init__(self) -> None:
        self.last = Figures()
        self.total = Figures()
        self.reset()

    def reset(self) -> None:
        """Forget the messages, not the system prompt."""
        self.messages: list[Message] = []
        if self.system is not None:
            self.messages.append({"role": "system", "content": self.system})

    def ask(self, text: str, write: Callable[[str], None]) -> str | None:
        """Send the user's ``text`` and give the answer to ``write`` piece by piece.

        Ctrl-C while the answer comes ends it; what had come stays in the conversation. After an error the conversation
        is as if nothing had been asked.

        Returns:
            Why the answer ended: ``stop``, ``length``, ..., or None when it was interrupted.

        Raises:
            WindlassError: the engine refused the request, or failed.
            KeyboardInterrupt: Ctrl-C was pressed again before the answer had ended.
        """
        messages: list[Message] = [*self.messages, {"role": "user", "content": text}]
        request_id = f"chat-{secrets.token_hex(16)}"
        answer: list[str] = []
        first: float | None = None
        reason: str | None = None
        usage = None
        started = time.monotonic()
        with _CtrlC(lambda: self.engine.abort(request_id)) as ctrl_c:
            stream = self.engine.chat.completions.create(
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
                request_id=request_id,
                **self.arguments,
            )
            with closing(stream):
                if ctrl_c.pressed:  # perhaps before the engine knew the request
                    self.engine.abort(request_id)
                try:
                    for chunk in stream:
                        usage = chunk.usage or usage
                        for choice in chunk.choices:
                            reason = choice.finish_reason or reason
                            if choice.delta.content:
                                first = first or time.monotonic()
                                answer.append(choice.delta.content)
                                write(choice.delta.content)
                except RequestAbortedError:
                    if not ctrl_c.pressed:
                        raise
        self.messages = [*messages, {"role": "assistant", "content": "".join(answer)}]
        if reason is not None and usage is not None:
            ended = time.monotonic()
            first = first or ended
            self.last = Figures(1, usage.prompt_tokens, usage.completion_tokens, first - started, ended - first)
            self.total += self.last
        return reason


class _CtrlC:
    """While entered, the first Ctrl-C calls ``act`` and only the next raises KeyboardInterrupt. For the main thread.

    An exception out of nowhere may strike in the middle of any library, and some turn it into errors of their own.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self.pressed = False
        self._act = act

    def __enter__(self) -> _CtrlC:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
        self._act()
