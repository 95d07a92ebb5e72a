"""From the arguments of a call to the requests that the core runs."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from windlass.engine.loop import EngineCore
from windlass.engine.request import Request, SamplingParams
from windlass.errors import ContextLengthError, EngineError, InvalidRequestError
from windlass.serve.adapters import chosen_adapter
from windlass.serve.build import LoadedModel
from windlass.serve.call import Box, Call, CallInfo, Chunk_co, Format, Host, Response_co
from windlass.serve.mailbox import ChoiceOutput
from windlass.text.stop import StopStrings

if TYPE_CHECKING:
    from windlass.protocol.arguments import CommonArguments

COMPUTES_WITHIN = 0.02
"""Seconds after which an idle engine computes what it was given, whatever holds it up."""

_SAMPLING_NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


@contextmanager
def counted(host: Host) -> Iterator[None]:
    """Have ``host`` count the call when it is refused within the block."""
    try:
        yield
    except (EngineError, InvalidRequestError) as error:
        host._count_refusal(error)
        raise


def start_call(
    core: EngineCore,
    model: LoadedModel,
    arguments: CommonArguments,
    prompts: Sequence[list[int]],
    *,
    max_tokens: int | None,
    id_prefix: str,
    param: str,
    continues: bool = False,
    num_logprobs: int | None = None,
    mailbox: Callable[[int], Box],
    format: Callable[[CallInfo], Format[Chunk_co, Response_co]],  # noqa: A002
) -> Call[Box, Chunk_co, Response_co]:
    """Submit the sequences of one call.

    Args:
        arguments: checked, without None.
        param: the argument the prompt came from, for errors.
        prompts: token ids; each prompt gets as many choices as the call asks for.
        continues: the answers continue the text of their prompts.
        num_logprobs: how many of the likeliest tokens to report; None reports no logprobs.

    Raises:
        ContextLengthError: the prompt leaves no room for an answer.
        InvalidRequestError: the request id is in use, an id in ``logit_bias`` is not in the vocabulary, there is no
            adapter of the name given, or the model generates no text.
        EngineError: the engine does not accept requests now.
    """
    if model.definition.pooling is not None:
        raise InvalidRequestError(
            f"model {model.name!r} makes embeddings and generates no text", param="model", code="unsupported_model"
        )
    adapter, name = chosen_adapter(arguments, model.adapters, model.name)
    rooms = [_room(model, prompt_ids, param) for prompt_ids in prompts]
    choices_per_prompt = arguments.get("n") or 1
    num_choices = len(prompts) * choices_per_prompt
    info = CallInfo(
        id=arguments.get("request_id") or f"{id_prefix}-{secrets.token_hex(16)}",
        model=name,
        created=int(time.time()),
        num_prompt_tokens=sum(map(len, prompts)),
        num_choices=num_choices,
        choices_per_prompt=choices_per_prompt,
        include_usage=(arguments.get("stream_options") or {}).get("include_usage", False),
    )
    box = mailbox(num_choices)
    debug = arguments.get("debug_config") or {}
    stop_token_ids, stop_strings = _stops(arguments, model) if not debug.get("ignore_eos") else (frozenset(), ())
    timeout = arguments.get("timeout")
    deadline = None if timeout is None else time.monotonic() + timeout
    requests = tuple(
        Request(
            request_id=info.id,
            prompt_ids=prompt_ids,
            max_tokens=min(max_tokens or room, room),
            stop_token_ids=stop_token_ids,
            sampling=sampling,
            output=ChoiceOutput(
                index=number * choices_per_prompt + sampling.choice,
                mailbox=box,
                detokenizer=model.text.detokenizer(prompt_ids if continues else ()),
                stops=StopStrings(stop_strings),
                release=partial(core.finish_early, info.id),
                token_bytes=model.text.token_bytes,
            ),
            num_logprobs=num_logprobs,
            deadline=deadline,
            pin_prompt=debug.get("pinned_system_prompt", False),
            adapter=adapter,
        )
        for number, (prompt_ids, room) in enumerate(zip(prompts, rooms, strict=True))
        # Choices are numbered anew for each prompt, so that with a seed it gets what it gets alone.
        for sampling in _sampling(arguments, model, choices_per_prompt)
    )
    # Before the request is accepted, so that from then on somebody is there to abort it.
    call = Call(info, core, requests, box, format(info))
    core.add_request(requests)
    if "windlass.protocol.responses" not in sys.modules:
        _make_types(core)
    return call


def _make_types(core: EngineCore) -> None:
    """Make the types of responses, in the first call of a process, while the engine thread computes.

    Until that thread does, it needs the GIL, for which Python would have it wait 5 ms whenever it takes it.
    """
    before, deadline = core.computed, time.monotonic() + COMPUTES_WITHIN
    while core.computed == before and time.monotonic() < deadline:
        time.sleep(0.0005)
    import windlass.protocol.responses  # noqa: F401


def _room(model: LoadedModel, prompt_ids: list[int], param: str) -> int:
    """Return how many tokens an answer to a prompt can have."""
    if not prompt_ids:
        raise InvalidRequestError("the prompt has no tokens", param=param)
    room = model.sizes.max_single_sequence_length - len(prompt_ids)
    if room < 1:
        raise ContextLengthError(
            # Clients know this refusal by OpenAI's first words, and shorten the conversation.
            f"this model's maximum context length is {model.sizes.max_single_sequence_length} tokens: the prompt has "
            f"{len(prompt_ids)}, which leaves no room for an answer",
            param=param,
        )
    return room


def _sampling(arguments: CommonArguments, model: LoadedModel, num_choices: int) -> list[SamplingParams]:
    """What the call asks for, else what the model's files say, else neutral values; one per choice."""
    chosen: dict[str, Any] = {}
    for name in _SAMPLING_NAMES:
        given = arguments.get(name)
        value = getattr(model.text.defaults, name) if given is None else given
        if value is not None:
            chosen[name] = value
    chosen["logit_bias"] = _logit_bias(arguments, model.definition.vocab_size)
    seed = arguments.get("seed")
    chosen["seed"] = secrets.randbits(63) if seed is None else seed
    return [SamplingParams(**chosen, choice=choice) for choice in range(num_choices)]


def _logit_bias(arguments: CommonArguments, vocab_size: int) -> tuple[tuple[int, float], ...]:
    biases = []
    for key, bias in (arguments.get("logit_bias") or {}).items():
        text = str(key)
        if not text.isascii() or not text.isdecimal() or int(text) >= vocab_size:
            raise InvalidRequestError(
                f"logit_bias: {key!r} is not a token id of this vocabulary of {vocab_size} tokens", param="logit_bias"
            )
        biases.append((int(text), bias))
    return tuple(biases)


def _stops(arguments: CommonArguments, model: LoadedModel) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return the token ids and the strings that end an answer."""
    stop = arguments.get("stop")
    given = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return model.text.stop_token_ids | model.text.stop_ids_of(given), (*given, *model.text.stop_strings)
