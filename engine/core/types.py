"""The engine's interface types: requests in, token deltas and statistics out.

A leaf: imports only adapters and the engine's errors, and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from engine.core.adapter import Adapter
from engine.errors import EngineError

ALL_LOGPROBS = -1  # those of the whole vocabulary, as in vLLM
MAX_ROLLBACK = 64  # tokens; more than are guessed in one step


class FinishReason(StrEnum):
    """Why a request ended; every request ends in exactly one."""

    STOP = "stop"  # an end-of-sequence token, a stop token or (found by the server) a stop string
    LENGTH = "length"  # max_tokens is reached, or the model's context is full
    ABORT = "abort"  # the client left, or the server found a stop string and needs no more
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one sequence is sampled; checked by the server before it gets here.

    `seed` is always set (the server draws one where the client gave none): the token at output
    position `i` depends on `(seed, i)` and the logits alone, whatever else is in the batch.
    """

    max_tokens: int  # 0 = the prompt only: the request ends once it is computed, without generating
    min_tokens: int = 0  # no end-of-sequence or stop token before this many
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = all
    min_p: float = 0.0
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    presence_penalty: float = 0.0  # of tokens in the output so far
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # of tokens in prompt and output; 1 = none
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id → added to its logit
    allowed_token_ids: tuple[int, ...] | None = None  # None = all
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences of token ids that must not be generated
    # Per output position: this many most likely tokens, and the sampled. None = off, ALL_LOGPROBS = all.
    logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()  # return these tokens' logprobs instead of the most likely ones'
    prompt_logprobs: int | None = None  # like `logprobs`, for the prompt's tokens


class TokenLogprob(NamedTuple):
    """Natural logarithms of probabilities before temperature and filters, as vLLM's `raw_logprobs`.

    A tuple, as a step may have thousands.
    """

    token_id: int
    logprob: float
    rank: int  # 1 + the number of more likely tokens; equally likely ones share a rank; 0 = not counted


class PositionLogprobs(NamedTuple):
    """The logprobs at one position: of its token, and of the most likely ones."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()  # the most likely first, or those requested; may include `chosen`


class TokenConstraint(Protocol):
    """What one sequence may generate (a grammar, a reasoning budget), as a state machine over tokens.

    The server makes it for one sequence; afterwards only the engine's thread uses it. Preemption doesn't
    rewind it: the output stays.
    """

    def wait(self, timeout_s: float) -> bool:
        """Whether `fill_mask` can return or raise at once; waits at most `timeout_s` for that."""
        ...

    def fill_mask(self, mask: Any, row: int) -> bool:
        """Write which tokens may come next into row `row` of `mask`, int32 [S, ceil(vocab / 32)] on the CPU.

        Bit `token_id % 32` of word `token_id // 32`, 1 = allowed. False = all allowed, nothing was written.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Advance by the sampled token, which the mask allowed."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Undo the last calls of `accept`: so many of them, at most MAX_ROLLBACK.

        Raises ValueError if there are not so many.
        """
        ...

    @property
    def is_finished(self) -> bool:
        """Whether the output is complete, and only an end-of-sequence token could follow."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One sequence to generate. `n` > 1 is several requests that share a prompt (and its cached blocks)."""

    request_id: str
    group: str = ""  # the API request it belongs to, whose sequences share one fair share; "" = by itself
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    arrival_time: float  # monotonic seconds
    priority: int = 0  # lower first, as vLLM has it
    constraint: TokenConstraint | None = None
    cache_salt: bytes = b""  # prompts share cached blocks only where their salts are equal
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimings:
    """When a request reached each stage, in monotonic seconds; None if it has not."""

    arrival_time: float
    scheduled_time: float | None = None  # first included in a batch
    first_token_time: float | None = None
    finished_time: float | None = None

    @property
    def queue_s(self) -> float | None:
        return _span(self.arrival_time, self.scheduled_time)

    @property
    def prefill_s(self) -> float | None:
        return _span(self.scheduled_time, self.first_token_time)

    @property
    def decode_s(self) -> float | None:
        return _span(self.first_token_time, self.finished_time)

    @property
    def time_to_first_token_s(self) -> float | None:
        return _span(self.arrival_time, self.first_token_time)

    @property
    def end_to_end_s(self) -> float | None:
        return _span(self.arrival_time, self.finished_time)


def _span(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDelta:
    """What one step produced for one request. The last delta of a request has a `finish_reason`.

    The stop or end-of-sequence token that ended a request is the last of `token_ids`: it counts as
    generated; the server decides whether its text is shown. A finished grammar may end a request with a
    token of the output itself.
    """

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None  # the stop token that ended it; None for the main end-of-sequence token
    ends_with_stop_token: bool = False  # the last of `token_ids` is not part of the text
    num_cached_tokens: int = 0  # prompt tokens that came from the prefix cache
    logprobs: tuple[PositionLogprobs, ...] = ()  # parallel to `token_ids` if they were asked for
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None  # on the first delta; None for token 0
    error: EngineError | None = None  # with FinishReason.ERROR: what went wrong, to be sent to the client
    timings: RequestTimings | None = None  # on the first delta and on the last


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot for /metrics and /load; counters never decrease."""

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    kv_cache_usage: float = 0.0  # 0 … 1
    prefix_cache_queries: int = 0  # tokens looked up
    prefix_cache_hits: int = 0  # tokens found
    prompt_tokens: int = 0
    generation_tokens: int = 0
    num_preemptions: int = 0
    sleep_level: int = 0  # 0 awake
    cache_config: Mapping[str, str] = field(default_factory=dict)  # labels, as in vLLM's cache_config_info
