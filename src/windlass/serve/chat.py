"""``engine.chat.completions.create``, sync and async."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from windlass.errors import InvalidRequestError
from windlass.protocol.checks import check_chat_arguments
from windlass.serve.call import AsyncHost, AsyncStream, Box, Call, Host, Stream, SyncHost, wait, wait_async
from windlass.serve.mailbox import AsyncMailbox, SyncMailbox
from windlass.serve.prompts import prompt_ids_of, shown_tools
from windlass.serve.submit import counted, start_call

# pydantic takes longer to import, and to make its types, than the weights take to load.
if TYPE_CHECKING:
    from typing_extensions import Unpack

    from windlass.protocol.arguments import ChatArguments
    from windlass.protocol.responses import ChatCompletion, ChatCompletionChunk


def start_chat(
    host: Host, arguments: ChatArguments, mailbox: Callable[[int], Box]
) -> Call[Box, ChatCompletionChunk, ChatCompletion]:
    """Check ``arguments``, render and tokenize the conversation, and submit the call.

    Raises:
        InvalidRequestError, ContextLengthError: the request is refused; ``param`` names the argument.
        EngineError: the engine does not accept requests now.
    """
    from windlass.serve.chat_format import ChatFormat

    with counted(host):
        core, model = host._parts()
        messages = arguments.get("messages")
        if isinstance(messages, Sequence) and not isinstance(messages, str):
            arguments["messages"] = [_plain(message) for message in messages]
        arguments = check_chat_arguments(arguments)
        max_tokens, newer = arguments.get("max_tokens"), arguments.get("max_completion_tokens")
        if max_tokens is not None and newer is not None and max_tokens != newer:
            raise InvalidRequestError("max_tokens and max_completion_tokens differ; give one", param="max_tokens")
        wants_logprobs = bool(arguments.get("logprobs"))
        prompt_ids = prompt_ids_of(model, arguments)
        parallel = arguments.get("parallel_tool_calls")
        new_parser = partial(
            model.text.answer_parser,
            prompt_ids,
            tools=bool(shown_tools(arguments)),
            parallel_tool_calls=parallel is None or parallel,
        )
        return start_call(
            core,
            model,
            arguments,
            [prompt_ids],
            max_tokens=newer or max_tokens,
            id_prefix="chatcmpl",
            param="messages",
            num_logprobs=arguments.get("top_logprobs", 0) if wants_logprobs else None,
            mailbox=mailbox,
            format=partial(ChatFormat, new_parser=new_parser, with_logprobs=wants_logprobs),
        )


def _plain(message: Any) -> Any:
    """Let an answer's message object be appended to the conversation as it is."""
    if isinstance(message, dict):
        return message
    from pydantic import BaseModel

    return message.model_dump(exclude_none=True) if isinstance(message, BaseModel) else message


class ChatCompletions:
    """``engine.chat.completions`` of the sync engine."""

    def __init__(self, engine: SyncHost) -> None:
        self._engine = engine

    @overload
    def create(self, *, stream: Literal[False] = False, **arguments: Unpack[ChatArguments]) -> ChatCompletion: ...
    @overload
    def create(self, *, stream: Literal[True], **arguments: Unpack[ChatArguments]) -> Stream[ChatCompletionChunk]: ...
    @overload
    def create(
        self, *, stream: bool, **arguments: Unpack[ChatArguments]
    ) -> ChatCompletion | Stream[ChatCompletionChunk]: ...
    def create(
        self, *, stream: bool = False, **arguments: Unpack[ChatArguments]
    ) -> ChatCompletion | Stream[ChatCompletionChunk]:
        """Answer a conversation; the arguments are those of ``protocol.arguments.ChatArguments``.

        Returns the whole answer, or with ``stream=True`` an iterator of chunks; the request is accepted or refused
        before this returns.

        Raises:
            InvalidRequestError, ContextLengthError: the request is refused; ``param`` names the argument.
            EngineError: the engine does not accept requests now, or ended before the answer did.
        """
        mailbox = partial(SyncMailbox, whole=not stream)
        call = self._engine._prepare(partial(start_chat, self._engine, arguments, mailbox))
        return Stream(call, self._engine) if stream else wait(call)


class AsyncChatCompletions:
    """``engine.chat.completions`` of the async engine."""

    def __init__(self, engine: AsyncHost) -> None:
        self._engine = engine

    @overload
    async def create(self, *, stream: Literal[False] = False, **arguments: Unpack[ChatArguments]) -> ChatCompletion: ...
    @overload
    async def create(
        self, *, stream: Literal[True], **arguments: Unpack[ChatArguments]
    ) -> AsyncStream[ChatCompletionChunk]: ...
    @overload
    async def create(
        self, *, stream: bool, **arguments: Unpack[ChatArguments]
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]: ...
    async def create(
        self, *, stream: bool = False, **arguments: Unpack[ChatArguments]
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
        """As ``ChatCompletions.create``, without blocking the event loop."""
        mailbox = partial(AsyncMailbox, whole=not stream)
        call = await self._engine._prepare(partial(start_chat, self._engine, arguments, mailbox))
        return AsyncStream(call, self._engine) if stream else await wait_async(call)


class Chat:
    """``engine.chat`` of the sync engine. Made anew at each access, so that engines are in no reference cycle."""

    def __init__(self, engine: SyncHost) -> None:
        self.completions = ChatCompletions(engine)


class AsyncChat:
    """``engine.chat`` of the async engine."""

    def __init__(self, engine: AsyncHost) -> None:
        self.completions = AsyncChatCompletions(engine)
