"""``engine.embeddings.create``, sync and async."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from windlass.engine.request import FinishReason, Request, SamplingParams
from windlass.errors import ContextLengthError, InvalidRequestError
from windlass.late_numpy import np
from windlass.program.pooling import normalized
from windlass.serve.build import LoadedModel
from windlass.serve.call import AsyncHost, Box, Call, CallInfo, Host, SyncHost, wait, wait_async
from windlass.serve.mailbox import AsyncMailbox, Mailbox, Piece, SyncMailbox
from windlass.serve.prompts import check_ids, check_length
from windlass.serve.submit import counted

# pydantic takes longer to import, and to make its types, than the weights take to load.
if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from windlass.native.sampling import TokenLogprobs
    from windlass.protocol.arguments import EmbeddingArguments, Prompt
    from windlass.protocol.responses import EmbeddingList, Usage


class _EmbeddingOutput:
    """Where a text's ending goes (an ``engine.request.Output``); its embedding stays with the request."""

    def __init__(self, index: int, mailbox: Mailbox) -> None:
        self._index = index
        self._mailbox = mailbox

    def put(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """A text that is embedded has no next token."""

    def finish(self, reason: FinishReason) -> None:
        """Deliver the ending."""
        self._mailbox.put(Piece(self._index, "", 0, reason))

    def fail(self, error: BaseException) -> None:
        """End the whole call with ``error``."""
        self._mailbox.fail(error)


class _EmbeddingFormat:
    """The requests of a call as its response."""

    def __init__(self, info: CallInfo, requests: Sequence[Request], arguments: EmbeddingArguments) -> None:
        self._info = info
        self._requests = requests
        self._dimensions = arguments.get("dimensions")
        self._in_base64 = arguments.get("encoding_format") == "base64"

    def chunk(self, piece: Piece) -> None:
        """Embeddings come all at once."""

    def usage_chunk(self, usage: Usage) -> None:
        """Embeddings come all at once."""

    def response(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> EmbeddingList:
        """Return the whole response."""
        from windlass.protocol.responses import Embedding, EmbeddingList, EmbeddingUsage

        indices = [pieces[-1].index for pieces in choices]
        vectors = [self._requests[index].pooled for index in indices]
        return EmbeddingList(
            data=[
                Embedding(index=index, embedding=self._encoded(vector))
                for index, vector in zip(indices, vectors, strict=True)
                if vector is not None
            ],
            model=self._info.model,
            usage=EmbeddingUsage(prompt_tokens=usage.prompt_tokens, total_tokens=usage.prompt_tokens),
        )

    def _encoded(self, vector: NDArray[np.float32]) -> list[float] | str:
        if self._dimensions is not None:
            vector = normalized(vector[: self._dimensions])
        if self._in_base64:
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        numbers: list[float] = vector.tolist()
        return numbers


def start_embeddings(
    host: Host, arguments: EmbeddingArguments, mailbox: Callable[[int], Box]
) -> Call[Box, None, EmbeddingList]:
    """Check ``arguments``, tokenize the inputs and submit the call.

    Raises:
        InvalidRequestError, ContextLengthError: the request is refused; ``param`` names the argument.
        EngineError: the engine does not accept requests now.
    """
    with counted(host):
        core, model = host._parts()
        from windlass.protocol.arguments import EmbeddingArguments, check_arguments

        arguments = check_arguments(EmbeddingArguments, arguments)
        _check_model(model, arguments)
        given = arguments["input"]
        # A list of numbers is one input.
        inputs = cast("list[Prompt]", [given] if isinstance(given, str) or isinstance(given[0], int) else given)
        prompts = [_prompt_ids(one, model) for one in inputs]
        info = CallInfo(
            id=arguments.get("request_id") or f"embd-{secrets.token_hex(16)}",
            model=arguments.get("model") or model.name,
            created=int(time.time()),
            num_prompt_tokens=sum(map(len, prompts)),
            num_choices=len(prompts),
            choices_per_prompt=1,
            include_usage=False,
        )
        box = mailbox(len(prompts))
        timeout = arguments.get("timeout")
        deadline = None if timeout is None else time.monotonic() + timeout
        requests = tuple(
            Request(
                request_id=info.id,
                prompt_ids=prompt_ids,
                max_tokens=0,
                stop_token_ids=frozenset(),
                sampling=SamplingParams(),
                output=_EmbeddingOutput(index, box),
                deadline=deadline,
            )
            for index, prompt_ids in enumerate(prompts)
        )
        # Before the request is accepted, so that from then on somebody is there to abort it.
        call = Call(info, core, requests, box, _EmbeddingFormat(info, requests, arguments), is_large=len(prompts) > 1)
        core.add_request(requests)
        return call


def _check_model(model: LoadedModel, arguments: EmbeddingArguments) -> None:
    if model.definition.pooling is None:
        raise InvalidRequestError(
            f"model {model.name!r} generates text and makes no embeddings", param="model", code="unsupported_model"
        )
    dimensions, width = arguments.get("dimensions"), model.definition.hidden_size
    if dimensions is not None and dimensions > width:
        raise InvalidRequestError(f"dimensions: the embeddings of this model have {width}", param="dimensions")


def _prompt_ids(given: Prompt, model: LoadedModel) -> list[int]:
    if isinstance(given, str):
        check_length(model, [given], param="input")
        ids = model.text.encode_whole(given)
    else:
        check_ids(given, model, param="input")
        ids = given
    longest = model.sizes.max_single_sequence_length
    if not ids:
        raise InvalidRequestError("the input has no tokens", param="input")
    if len(ids) > longest:
        raise ContextLengthError(
            f"this model's maximum context length is {longest} tokens: the input has {len(ids)}", param="input"
        )
    return ids


class Embeddings:
    """``engine.embeddings`` of the sync engine."""

    def __init__(self, engine: SyncHost) -> None:
        self._engine = engine

    def create(self, **arguments: Unpack[EmbeddingArguments]) -> EmbeddingList:
        """Return the embeddings of texts; the arguments are those of ``protocol.arguments.EmbeddingArguments``.

        Raises:
            InvalidRequestError, ContextLengthError: the request is refused; ``param`` names the argument.
            EngineError: the engine does not accept requests now, or ended before the answer was there.
        """
        mailbox = partial(SyncMailbox, whole=True)
        return wait(self._engine._prepare(partial(start_embeddings, self._engine, arguments, mailbox)))


class AsyncEmbeddings:
    """``engine.embeddings`` of the async engine."""

    def __init__(self, engine: AsyncHost) -> None:
        self._engine = engine

    async def create(self, **arguments: Unpack[EmbeddingArguments]) -> EmbeddingList:
        """As ``Embeddings.create``, without blocking the event loop."""
        mailbox = partial(AsyncMailbox, whole=True)
        call = await self._engine._prepare(partial(start_embeddings, self._engine, arguments, mailbox))
        return await wait_async(call)
