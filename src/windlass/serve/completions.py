"""``engine.completions.create``, sync and async."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, cast, overload

from windlass.errors import InvalidRequestError
from windlass.protocol.checks import check_completion_arguments
from windlass.serve.build import LoadedModel
from windlass.serve.call import AsyncHost, AsyncStream, Box, Call, CallInfo, Host, Stream, SyncHost, wait, wait_async
from windlass.serve.mailbox import AsyncMailbox, Piece, SyncMailbox
from windlass.serve.prompts import check_ids, check_length
from windlass.serve.submit import counted, start_call

# pydantic takes longer to import, and to make its types, than the weights take to load.
if TYPE_CHECKING:
    from typing_extensions import Unpack

    from windlass.protocol.arguments import CompletionArguments, Prompt
    from windlass.protocol.responses import Completion, CompletionChoice, CompletionLogprobs, Usage


class CompletionFormat:
    """Pieces as text completion objects."""

    def __init__(self, info: CallInfo, *, with_logprobs: bool, echoes: Sequence[str], suffix: str) -> None:
        """Begin the choices of each prompt with its ``echoes``, end all with ``suffix``."""
        self._info = info
        self._with_logprobs = with_logprobs
        self._echoes = echoes
        self._suffix = suffix
        self._lengths = [0] * info.num_choices
        self._begun = [False] * info.num_choices

    def chunk(self, piece: Piece) -> Completion:
        """Return the stream element of one piece."""
        return self._completion([self._choice([piece])])

    def usage_chunk(self, usage: Usage) -> Completion:
        """Return the stream element that closes a stream with ``include_usage``."""
        return self._completion([], usage)

    def response(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> Completion:
        """Return the whole response."""
        return self._completion([self._choice(pieces) for pieces in choices], usage)

    def _choice(self, pieces: Sequence[Piece]) -> CompletionChoice:
        """Return the next part of a choice: the prompt goes before the first, the suffix behind the last."""
        from windlass.protocol.responses import CompletionChoice, unchecked

        last = pieces[-1]
        before = "" if self._begun[last.index] else self._echoes[last.index // self._info.choices_per_prompt]
        self._begun[last.index] = True
        self._lengths[last.index] += len(before)
        text = before + "".join(piece.text for piece in pieces) + (self._suffix if last.reason else "")
        return unchecked(
            CompletionChoice,
            index=last.index,
            text=text,
            finish_reason=last.reason.value if last.reason else None,
            logprobs=self._logprobs(pieces) if self._with_logprobs else None,
        )

    def _logprobs(self, pieces: Sequence[Piece]) -> CompletionLogprobs:
        from windlass.protocol.responses import CompletionLogprobs

        scored = [token for piece in pieces for token in piece.scored]
        tokens = [token.token.decode(errors="replace") for token in scored]
        offsets = []
        for token in tokens:
            offsets.append(self._lengths[pieces[0].index])
            self._lengths[pieces[0].index] += len(token)
        return CompletionLogprobs(
            tokens=tokens,
            token_logprobs=[token.logprob for token in scored],
            top_logprobs=[{top.decode(errors="replace"): value for top, value in token.top} for token in scored],
            text_offset=offsets,
        )

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        from windlass.protocol.responses import Completion, unchecked

        return unchecked(
            Completion,
            id=self._info.id,
            created=self._info.created,
            model=self._info.model,
            choices=choices,
            usage=usage,
        )


def start_completion(
    host: Host, arguments: CompletionArguments, mailbox: Callable[[int], Box]
) -> Call[Box, Completion, Completion]:
    """Check ``arguments``, tokenize the prompt and submit the call.

    Raises:
        InvalidRequestError, ContextLengthError: the request is refused; ``param`` names the argument.
        EngineError: the engine does not accept requests now.
    """
    with counted(host):
        core, model = host._parts()
        arguments = check_completion_arguments(arguments)
        given = arguments["prompt"]
        # A list of numbers is one prompt.
        prompts = cast("list[Prompt]", [given] if isinstance(given, str) or isinstance(given[0], int) else given)
        num_logprobs = arguments.get("logprobs")
        echoes = [""] * len(prompts)
        if arguments.get("echo"):
            if num_logprobs is not None:
                raise InvalidRequestError("logprobs are not available for the prompt that echo repeats", param="echo")
            echoes = [prompt if isinstance(prompt, str) else model.text.decode(prompt) for prompt in prompts]
        return start_call(
            core,
            model,
            arguments,
            [_prompt_ids(prompt, model) for prompt in prompts],
            max_tokens=arguments.get("max_tokens"),
            id_prefix="cmpl",
            param="prompt",
            continues=True,
            num_logprobs=num_logprobs,
            mailbox=mailbox,
            format=partial(
                CompletionFormat,
                with_logprobs=num_logprobs is not None,
                echoes=echoes,
                suffix=arguments.get("suffix") or "",
            ),
        )


def _prompt_ids(prompt: Prompt, model: LoadedModel) -> list[int]:
    if isinstance(prompt, str):
        check_length(model, [prompt], param="prompt")
        return model.text.encode_prompt(prompt)
    check_ids(prompt, model, param="prompt")
    return prompt


class Completions:
    """``engine.completions`` of the sync engine."""

    def __init__(self, engine: SyncHost) -> None:
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
        mailbox = partial(SyncMailbox, whole=not stream)
        call = self._engine._prepare(partial(start_completion, self._engine, arguments, mailbox))
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
        mailbox = partial(AsyncMailbox, whole=not stream)
        call = await self._engine._prepare(partial(start_completion, self._engine, arguments, mailbox))
        return AsyncStream(call, self._engine) if stream else await wait_async(call)
