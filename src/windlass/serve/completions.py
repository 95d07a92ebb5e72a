"""``engine.completions.create``, sync and async."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, overload

from typing_extensions import Unpack

from windlass.errors import InvalidRequestError
from windlass.protocol.arguments import CompletionArguments, check_arguments
from windlass.protocol.responses import Completion, CompletionChoice, Usage
from windlass.serve.build import LoadedModel
from windlass.serve.call import AsyncHost, AsyncStream, Box, Call, CallInfo, Host, Stream, start_call, wait, wait_async
from windlass.serve.mailbox import AsyncMailbox, Piece, SyncMailbox


class CompletionFormat:
    """Pieces as text completion objects."""

    def __init__(self, info: CallInfo) -> None:
        self._info = info

    def chunk(self, piece: Piece) -> Completion:
        """Return the stream element of one piece."""
        return self._completion([_choice(piece.index, piece.text, piece)])

    def usage_chunk(self, usage: Usage) -> Completion:
        """Return the stream element that closes a stream with ``include_usage``."""
        return self._completion([], usage)

    def response(self, texts: Sequence[str], last: Sequence[Piece], usage: Usage) -> Completion:
        """Return the whole response."""
        pairs = zip(texts, last, strict=True)
        return self._completion([_choice(index, text, piece) for index, (text, piece) in enumerate(pairs)], usage)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(
            id=self._info.id, created=self._info.created, model=self._info.model, choices=choices, usage=usage
        )


def _choice(index: int, text: str, piece: Piece) -> CompletionChoice:
    return CompletionChoice(index=index, text=text, finish_reason=piece.reason.value if piece.reason else None)


def start_completion(
    host: Host, arguments: CompletionArguments, mailbox: type[Box]
) -> Call[Box, Completion, Completion]:
    """Check ``arguments``, tokenize the prompt and submit the call.

    Raises:
        InvalidRequestError, ContextLengthError: the request is refused; ``param`` names the argument.
        EngineError: the engine does not accept requests now.
    """
    core, model = host._parts()
    arguments = check_arguments(CompletionArguments, arguments)
    prompt_ids = _prompt_ids(arguments["prompt"], model)
    return start_call(
        core,
        model,
        arguments,
        prompt_ids,
        max_tokens=arguments.get("max_tokens"),
        id_prefix="cmpl",
        param="prompt",
        continued_ids=prompt_ids,
        mailbox=mailbox,
        format=CompletionFormat,
    )


def _prompt_ids(prompt: str | list[int], model: LoadedModel) -> list[int]:
    if isinstance(prompt, str):
        return model.text.encode_prompt(prompt)
    vocab_size = model.definition.vocab_size
    outside = [token_id for token_id in prompt if token_id >= vocab_size]
    if outside:
        raise InvalidRequestError(
            f"token id {outside[0]} is not in the vocabulary of {vocab_size} tokens", param="prompt"
        )
    return prompt


class Completions:
    """``engine.completions`` of the sync engine."""

    def __init__(self, engine: Host) -> None:
        self._engine = engine

    @overload
    def create(self, *, stream: Literal[False] = False, **arguments: Unpack[CompletionArguments]) -> Completion: ...
    @overload
    def create(self, *, stream: Literal[True], **arguments: Unpack[CompletionArguments]) -> Stream[Completion]: ...
    @overload
    def create(self, *, stream: bool, **arguments: Unpack[CompletionArguments]) -> Completion | Stream[Completion]: ...
    def create(
        self, *, stream: bool = False, **arguments: Unpack[CompletionArguments]
    ) -> Completion | Stream[Completion]:
        """Continue a text; the arguments are those of ``protocol.arguments.CompletionArguments``.

        Returns the whole continuation, or with ``stream=True`` an iterator of its parts; the request is accepted or
        refused before this returns.

        Raises:
            InvalidRequestError, ContextLengthError: the request is refused; ``param`` names the argument.
            EngineError: the engine does not accept requests now, or ended before the continuation did.
        """
        call = start_completion(self._engine, arguments, SyncMailbox)
        return Stream(call, self._engine) if stream else wait(call)


class AsyncCompletions:
    """``engine.completions`` of the async engine."""

    def __init__(self, engine: AsyncHost) -> None:
        self._engine = engine

    @overload
    async def create(
        self, *, stream: Literal[False] = False, **arguments: Unpack[CompletionArguments]
    ) -> Completion: ...
    @overload
    async def create(
        self, *, stream: Literal[True], **arguments: Unpack[CompletionArguments]
    ) -> AsyncStream[Completion]: ...
    @overload
    async def create(
        self, *, stream: bool, **arguments: Unpack[CompletionArguments]
    ) -> Completion | AsyncStream[Completion]: ...
    async def create(
        self, *, stream: bool = False, **arguments: Unpack[CompletionArguments]
    ) -> Completion | AsyncStream[Completion]:
        """As ``Completions.create``, without blocking the event loop."""
        call = await self._engine._prepare(partial(start_completion, self._engine, arguments, AsyncMailbox))
        return AsyncStream(call, self._engine) if stream else await wait_async(call)
