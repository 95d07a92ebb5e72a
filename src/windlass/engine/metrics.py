"""What an engine measures about itself, as one consistent set of numbers.

A request is one sequence here: a call with ``n=4`` counts as four.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from windlass.engine.exposition import Exposition
from windlass.engine.state import EngineState

PREFIX = "windlass_"
"""Of the names of all metrics of an engine in Prometheus' format."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How observations were distributed.

    Attributes:
        bounds: the inclusive upper ends of all buckets but the last one, which has none.
        counts: how many observations fell into each bucket.
        total: their sum.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Their mean; 0 when there were none."""
        return rate(self.total, self.count)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineMetrics(Mapping[str, Any]):
    """An engine's numbers at one moment, since its start or its last ``reset()``.

    They are attributes, and by the same names items: ``metrics["prompt_tokens_sum"]``. Names that MLC-LLM has too mean
    the same. Tokens are numbers of tokens, times are seconds.

    Attributes:
        state: the engine's state.
        num_requests_waiting: admitted requests that hold no pages yet, or no more after a preemption.
        num_requests_running: requests in the batch.
        num_pages: pages of the KV cache; 0 without a model. Each is free, cached or held.
        num_pages_free: pages that hold nothing.
        num_pages_cached: pages with a prefix that no running request uses.
        num_pages_held: pages that running requests use.
        engine_prefill_time_sum, engine_decode_time_sum: time in the model; a step that does both is split by tokens.
        prompt_tokens_sum: prompts that were processed to their end, with what the prefix cache had of them.
        completion_tokens_sum: generated, without stop tokens.
        prefill_tokens_sum: run through the model in prefill, with what was computed anew after a preemption.
        decode_tokens_sum: run through the model one by one, and drafts that were accepted.
        prefill_tokens_per_s, decode_tokens_per_s: those two by their times; 0 before the first one.
        prefix_cache_queries, prefix_cache_hits: prompt tokens looked for in the prefix cache, and found.
        num_steps: steps that ran; num_cancelled_steps: steps that an abort cut short.
        num_preemptions: how often a request gave its pages back to an older one.
        num_drafts: how often a request had draft tokens in a step.
        draft_tokens_by_position: first, second .. draft of a step (from 0): how many there were, and were accepted.
        draft_tokens_sum, accepted_draft_tokens_sum: those by position, summed up.
        draft_acceptance_rate: the second by the first; 0 before the first draft.
        spec_decode: the same as MLC-LLM gives it.
        requests_finished: by ``FinishReason``.
        requests_aborted: by ``AbortCause``.
        requests_refused: calls that were not accepted, by ``RefusalCause``.
        last_finished_request: its tokens, rates and latencies under MLC-LLM's names; empty before the first.
        decode_steps_by_batch_size: for steps that only decoded, by the number of requests: how many, and their time.
        time_to_first_token_seconds: from acceptance on.
        inter_token_latency_seconds: between two tokens of a request.
        e2e_request_latency_seconds: from acceptance to a good end.
        request_queue_time_seconds: from acceptance to the first step.
        request_prefill_time_seconds: from there to the first token.
        request_decode_time_seconds: from there to the last, of requests that ended well.
        request_prompt_tokens, request_generation_tokens: of requests that ended well.
    """

    state: EngineState
    num_requests_waiting: int
    num_requests_running: int
    num_pages: int
    num_pages_free: int
    num_pages_cached: int
    num_pages_held: int
    engine_prefill_time_sum: float
    engine_decode_time_sum: float
    prompt_tokens_sum: int
    completion_tokens_sum: int
    prefill_tokens_sum: int
    decode_tokens_sum: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_steps: int
    num_cancelled_steps: int
    num_preemptions: int
    num_drafts: int
    requests_finished: Mapping[str, int]
    requests_aborted: Mapping[str, int]
    requests_refused: Mapping[str, int]
    last_finished_request: Mapping[str, float]
    decode_steps_by_batch_size: Mapping[int, tuple[int, float]]
    draft_tokens_by_position: Mapping[int, tuple[int, int]]
    time_to_first_token_seconds: Histogram
    inter_token_latency_seconds: Histogram
    e2e_request_latency_seconds: Histogram
    request_queue_time_seconds: Histogram
    request_prefill_time_seconds: Histogram
    request_decode_time_seconds: Histogram
    request_prompt_tokens: Histogram
    request_generation_tokens: Histogram

    @property
    def prefill_tokens_per_s(self) -> float:
        """Tokens per second of prefill; 0 before the first."""
        return rate(self.prefill_tokens_sum, self.engine_prefill_time_sum)

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second of decoding; 0 before the first."""
        return rate(self.decode_tokens_sum, self.engine_decode_time_sum)

    @property
    def draft_tokens_sum(self) -> int:
        """Draft tokens that the model was run on."""
        return sum(drafted for drafted, _ in self.draft_tokens_by_position.values())

    @property
    def accepted_draft_tokens_sum(self) -> int:
        """Draft tokens that the model drew too."""
        return sum(accepted for _, accepted in self.draft_tokens_by_position.values())

    @property
    def draft_acceptance_rate(self) -> float:
        """Which part of the draft tokens was accepted; 0 before the first."""
        return rate(self.accepted_draft_tokens_sum, self.draft_tokens_sum)

    @property
    def spec_decode(self) -> dict[str, Any]:
        """The drafts as MLC-LLM gives them; step 0 is the token that comes without a draft, which always stands.

        ``draft_count`` and ``accept_count`` are lists by step; ``accept_prob["accept_prob{step=i}"]`` is their ratio,
        ``accept_rate`` the part of those accepted at the step before that is accepted at this one, and ``accept_len``
        the tokens of a step with so many drafts, on average. All are empty before the first draft.
        """
        steps = [steps for _, steps in sorted(self.draft_tokens_by_position.items())]
        if steps:
            steps.insert(0, (self.num_drafts, self.num_drafts))
        probabilities = [rate(accepted, drafted) for drafted, accepted in steps]
        rates = [rate(now, before) for before, now in zip([1.0, *probabilities], probabilities, strict=False)]
        lengths = list(itertools.accumulate(probabilities))
        return {
            "draft_count": [drafted for drafted, _ in steps],
            "accept_count": [accepted for _, accepted in steps],
            **{
                name: {f"{name}{{step={step}}}": value for step, value in enumerate(values)}
                for name, values in (("accept_prob", probabilities), ("accept_rate", rates), ("accept_len", lengths))
            },
        }

    @property
    def decode_time_by_batch_size(self) -> dict[str, dict[str, float]]:
        """The steps by batch size as MLC-LLM gives them: ``["mean"]["batch_size=4"]`` in seconds, and ``["count"]``."""
        steps = sorted(self.decode_steps_by_batch_size.items())
        return {
            "mean": {f"batch_size={size}": rate(seconds, count) for size, (count, seconds) in steps},
            "count": {f"batch_size={size}": count for size, (count, _) in steps},
        }

    def __getitem__(self, name: str) -> Any:
        """The value of ``name``; KeyError when there is none."""
        if name not in _NAMES:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(_NAMES)

    def __len__(self) -> int:
        """How many names there are."""
        return len(_NAMES)

    def prometheus_text(self, labels: Mapping[str, str] | None = None) -> str:
        """All of it in Prometheus' text format.

        Names are vLLM's, where it has them, with ``PREFIX``.

        Args:
            labels: put on every sample, for instance ``{"model_name": ...}``.
        """
        text = Exposition(PREFIX, labels)
        self.add_to(text)
        return text.text()

    def add_to(self, text: Exposition) -> None:
        """Add all of it to a document, which may have that of other engines already."""
        self._add_gauges(text)
        for name, (value, description) in _COUNTERS.items():
            text.add("counter", name, description, [({}, self[value])])
        finished = [({"finished_reason": reason}, count) for reason, count in self.requests_finished.items()]
        text.add("counter", "request_success_total", "Requests that ended well.", finished)
        aborted = [({"cause": cause}, count) for cause, count in self.requests_aborted.items()]
        text.add("counter", "request_aborts_total", "Requests that ended otherwise.", aborted)
        refused = [({"cause": cause}, count) for cause, count in self.requests_refused.items()]
        text.add("counter", "request_refusals_total", "Calls that were not accepted.", refused)
        drafts = sorted(self.draft_tokens_by_position.items())
        accepted_at = [({"position": str(position)}, accepted) for position, (_, accepted) in drafts]
        name = "spec_decode_num_accepted_tokens_per_pos_total"
        text.add("counter", name, "Accepted draft tokens, by their place in the draft.", accepted_at)
        decodes = sorted(self.decode_steps_by_batch_size.items())
        text.add_summary(
            "decode_step_seconds",
            "Time of steps that only decoded, by the number of requests.",
            [({"batch_size": str(size)}, steps) for size, steps in decodes],
        )
        for name, description in _HISTOGRAMS.items():
            histogram: Histogram = self[name]
            text.add_histogram(name, description, histogram.bounds, histogram.counts, histogram.total)

    def _add_gauges(self, text: Exposition) -> None:
        add_state(text, self.state)
        text.add("gauge", "num_requests_running", "Requests in the batch.", [({}, self.num_requests_running)])
        text.add("gauge", "num_requests_waiting", "Requests that wait for pages.", [({}, self.num_requests_waiting)])
        used = rate(self.num_pages_held, self.num_pages)
        text.add("gauge", "kv_cache_usage_perc", "Part of the KV cache in use; 1 is all of it.", [({}, used)])
        pages = {"free": self.num_pages_free, "cached": self.num_pages_cached, "held": self.num_pages_held}
        text.add(
            "gauge",
            "kv_cache_pages",
            "Pages of the KV cache.",
            [({"use": use}, count) for use, count in pages.items()],
        )


def add_state(text: Exposition, state: EngineState) -> None:
    """Add the state of an engine to a document: all that there is to say of one without metrics."""
    states = [({"state": one.value}, int(one is state)) for one in EngineState]
    text.add("gauge", "engine_state", "1 for the state that the engine is in.", states)


_PROPERTIES = (
    *("prefill_tokens_per_s", "decode_tokens_per_s", "decode_time_by_batch_size"),
    *("draft_tokens_sum", "accepted_draft_tokens_sum", "draft_acceptance_rate", "spec_decode"),
)
_NAMES = dict.fromkeys((*(field.name for field in fields(EngineMetrics)), *_PROPERTIES))

_COUNTERS = {
    "prompt_tokens_total": ("prompt_tokens_sum", "Tokens of prompts that were processed."),
    "generation_tokens_total": ("completion_tokens_sum", "Tokens generated, without stop tokens."),
    "prefill_tokens_total": ("prefill_tokens_sum", "Tokens run through the model in prefill."),
    "decode_tokens_total": ("decode_tokens_sum", "Tokens run through the model one by one, and accepted drafts."),
    "prefill_seconds_total": ("engine_prefill_time_sum", "Time the model spent on prefill."),
    "decode_seconds_total": ("engine_decode_time_sum", "Time the model spent on decoding."),
    "prefix_cache_queries_total": ("prefix_cache_queries", "Prompt tokens looked for in the prefix cache."),
    "prefix_cache_hits_total": ("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    "num_preemptions_total": ("num_preemptions", "How often a request gave its pages back to an older one."),
    "steps_total": ("num_steps", "Steps that ran."),
    "cancelled_steps_total": ("num_cancelled_steps", "Steps that an abort cut short."),
    "spec_decode_num_drafts_total": ("num_drafts", "How often a request had draft tokens in a step."),
    "spec_decode_num_draft_tokens_total": ("draft_tokens_sum", "Draft tokens that the model was run on."),
    "spec_decode_num_accepted_tokens_total": ("accepted_draft_tokens_sum", "Draft tokens that the model drew too."),
}

_HISTOGRAMS = {
    "time_to_first_token_seconds": "From acceptance to the first token.",
    "inter_token_latency_seconds": "Between two tokens of a request.",
    "e2e_request_latency_seconds": "From acceptance to a good end.",
    "request_queue_time_seconds": "From acceptance to the first step.",
    "request_prefill_time_seconds": "From the first step to the first token.",
    "request_decode_time_seconds": "From the first token to the last.",
    "request_prompt_tokens": "Prompt tokens of requests that ended well.",
    "request_generation_tokens": "Generated tokens of requests that ended well.",
}


def rate(amount: float, per: float) -> float:
    """``amount / per``; 0 when ``per`` is 0."""
    return amount / per if per else 0.0
