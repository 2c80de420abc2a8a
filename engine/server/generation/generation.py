"""One HTTP request's sequences, from engine requests to pieces of text. Knows nothing of HTTP or JSON.

Streamed and non-streamed responses are built from the same deltas, so their content is the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from engine.core.async_engine import AsyncEngine, TokenStream
from engine.core.types import EngineRequest, FinishReason, PositionLogprobs, TokenDelta
from engine.errors import EngineError, GenerationFailed
from engine.server.http.errors import ShuttingDown
from engine.server.http.request_log import RequestRecord, current_record
from engine.server.model.metrics import Metrics
from engine.text.detokenizer import Detokenizer


class ChoiceDelta(NamedTuple):
    """One step's output of one choice. The last delta of a choice has a `finish_reason`.

    `text` can lag behind `token_ids`: a possible beginning of a stop string is held back. A tuple for speed,
    since every token of every stream creates one.
    """

    choice: Choice
    text: str
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    token_ids: Sequence[int] = ()
    logprobs: Sequence[PositionLogprobs] = ()  # parallel to `token_ids` if requested
    prompt_logprobs: Sequence[PositionLogprobs | None] | None = None  # on the first delta


def merge_deltas(deltas: Sequence[ChoiceDelta]) -> ChoiceDelta:
    """The deltas of several steps of one choice, merged into one."""
    if len(deltas) == 1:
        return deltas[0]
    prompt_logprobs = (delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None)
    return deltas[-1]._replace(
        text="".join(delta.text for delta in deltas),
        token_ids=[token for delta in deltas for token in delta.token_ids],
        logprobs=[position for delta in deltas for position in delta.logprobs],
        prompt_logprobs=next(prompt_logprobs, None),
    )


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int | None = None  # part of the completion tokens; None if they are not counted


ReadUsage = Callable[[], Usage]  # so far


class Choice:
    """One sequence: its index in the response, its detokenizer and its counts."""

    def __init__(
        self,
        index: int,
        request: EngineRequest,
        detokenizer: Detokenizer,
        *,
        prefix: str,
        shows_stop_token: bool,
    ) -> None:
        """`prefix` (the echoed prompt) precedes the first text."""
        self.index = index
        self.request = request
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.num_reasoning_tokens: int | None = None  # set by ChoiceReader
        self.is_ended = False
        self.finish_reason: FinishReason | None = None
        self._detokenizer = detokenizer
        self._prefix = prefix
        self._shows_stop_token = shows_stop_token
        self._first_token_time: float | None = None
        self._last_token_time = 0.0

    def __repr__(self) -> str:
        return f"<Choice {self.index} {self.request.request_id} {self.num_tokens} tokens>"

    def end_at_once(self) -> ChoiceDelta:
        """End a choice that must not generate any tokens."""
        self.is_ended, self.finish_reason = True, FinishReason.LENGTH
        return ChoiceDelta(self, self._take_prefix(), FinishReason.LENGTH)

    def apply(self, delta: TokenDelta, metrics: Metrics) -> ChoiceDelta:
        """Raises EngineError if the engine failed."""
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        self._record_times(delta, metrics)
        reason = delta.finish_reason
        if reason is FinishReason.ERROR:
            self.end(reason, metrics)
            raise delta.error or GenerationFailed("The engine failed to continue this request.")
        return self._to_text(delta, metrics)

    def finish_at_once(self, delta: TokenDelta, metrics: Metrics) -> ChoiceDelta:
        """Deliver the whole output at once, without recording token times."""
        return self._to_text(delta, metrics)

    def _to_text(self, delta: TokenDelta, metrics: Metrics) -> ChoiceDelta:
        reason, stop_reason = delta.finish_reason, delta.stop_reason
        hide_last = delta.ends_with_stop_token and not self._shows_stop_token
        piece = self._detokenizer.push(delta.token_ids[:-1] if hide_last else delta.token_ids)
        text, stop = self._take_prefix() + piece.text, piece.stop
        token_ids, logprobs = delta.token_ids, delta.logprobs
        if stop is not None:  # tokens after it do not count
            token_ids, logprobs = token_ids[: piece.num_tokens], logprobs[: piece.num_tokens]
        self.num_tokens += len(token_ids)
        if stop is None and reason is not None:
            rest = self._detokenizer.flush()
            text, stop = text + rest.text, rest.stop
        if stop is not None:
            reason, stop_reason = FinishReason.STOP, None
        if reason is not None:
            self.end(reason, metrics)
        return ChoiceDelta(
            self,
            text,
            reason,
            stop_reason if stop is None else stop,
            token_ids,
            logprobs,
            delta.prompt_logprobs,
        )

    @property
    def first_token_s(self) -> float | None:
        """Seconds from arrival to the first token."""
        first = self._first_token_time
        return None if first is None else first - self.request.arrival_time

    def _take_prefix(self) -> str:
        prefix, self._prefix = self._prefix, ""
        return prefix

    def _record_times(self, delta: TokenDelta, metrics: Metrics) -> None:
        if not delta.token_ids:
            return
        now, num_next = time.monotonic(), len(delta.token_ids)
        if self._first_token_time is None:
            self._first_token_time = self._last_token_time = now
            if delta.timings is not None and delta.timings.first_token_time is not None:
                metrics.observe_first_token(delta.timings)
                self._first_token_time = self._last_token_time = delta.timings.first_token_time
            num_next -= 1
        if num_next:
            metrics.observe_next_tokens(now - self._last_token_time, num_next)
        self._last_token_time = now

    def end(self, reason: FinishReason, metrics: Metrics) -> None:
        """Record the end in the metrics, once."""
        if self.is_ended:
            return
        self.is_ended, self.finish_reason = True, reason
        now = time.monotonic()
        first = self._first_token_time
        metrics.observe_end(
            reason.value,
            end_to_end_s=now - self.request.arrival_time,
            decode_s=None if first is None else now - first,
        )
        metrics.observe_lengths(prompt=len(self.request.prompt_token_ids), generated=self.num_tokens)


class Generation:
    """The running choices of one request. A context manager: leaving it aborts those that have not ended."""

    def __init__(self, engine: AsyncEngine, metrics: Metrics, choices: Sequence[Choice]) -> None:
        self._engine = engine
        self._metrics = metrics
        self._choices = choices
        self._streams: list[tuple[Choice, TokenStream]] = []
        self._pumps: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Start all choices. If the engine raises, none of them runs."""
        try:
            for choice in self._choices:
                params = choice.request.params
                if params.max_tokens > 0 or params.prompt_logprobs is not None:
                    self._streams.append((choice, self._engine.stream(choice.request)))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        """Waits for nothing but our own cancelled tasks."""
        for choice, stream in self._streams:
            await stream.aclose()
            choice.end(FinishReason.ABORT, self._metrics)
        for pump in self._pumps:
            pump.cancel()
        if (record := current_record()) is not None:
            self._record(record)

    def _record(self, record: RequestRecord) -> None:
        usage = self.read_usage()
        firsts = [first for choice in self._choices if (first := choice.first_token_s) is not None]
        record.add(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.completion_tokens,
            first_token_s=min(firsts, default=None),
            reasons=[choice.finish_reason for choice in self._choices if choice.finish_reason is not None],
        )

    def read_usage(self) -> Usage:
        """A prompt counts once, however many choices it has; its first choice's cache hits count."""
        prompts = {id(choice.request.prompt_token_ids): choice for choice in reversed(self._choices)}
        return Usage(
            prompt_tokens=sum(len(choice.request.prompt_token_ids) for choice in prompts.values()),
            completion_tokens=sum(choice.num_tokens for choice in self._choices),
            cached_tokens=sum(choice.num_cached_tokens for choice in prompts.values()),
            reasoning_tokens=_sum_known(choice.num_reasoning_tokens for choice in self._choices),
        )

    def steps(self) -> AsyncIterator[list[ChoiceDelta]]:
        """Deltas that arrived together, until every choice has ended. Raises EngineError if one fails."""
        if not self._streams:
            return self._steps_without_streams()
        if len(self._streams) == 1:
            return self._steps_of_one_stream(*self._streams[0])
        return self._steps_of_many_streams()

    def _apply(self, choice: Choice, delta: TokenDelta) -> ChoiceDelta:
        """An abort by request id is a normal end; an abort because of a shutdown is an error."""
        if delta.finish_reason is FinishReason.ABORT and not self._engine.is_alive:
            choice.end(FinishReason.ABORT, self._metrics)
            raise ShuttingDown("The server is shutting down; this response is incomplete.")
        return choice.apply(delta, self._metrics)

    async def _steps_without_streams(self) -> AsyncIterator[list[ChoiceDelta]]:
        yield [choice.end_at_once() for choice in self._choices]

    async def _steps_of_one_stream(
        self, choice: Choice, stream: TokenStream
    ) -> AsyncIterator[list[ChoiceDelta]]:
        async for delta in stream:
            step = self._apply(choice, delta)
            if step.finish_reason is not None:
                await stream.aclose()
            yield [step]
            if step.finish_reason is not None:
                return

    async def _steps_of_many_streams(self) -> AsyncIterator[list[ChoiceDelta]]:
        arrivals: asyncio.Queue[tuple[Choice, TokenDelta | EngineError]] = asyncio.Queue()
        self._pumps = [asyncio.create_task(_pump(*each, arrivals)) for each in self._streams]
        streams = dict(self._streams)
        while not all(choice.is_ended for choice in streams):
            batch = [await arrivals.get()]
            while not arrivals.empty():
                batch.append(arrivals.get_nowait())
            deltas = []
            for choice, delta in batch:
                if isinstance(delta, EngineError):
                    raise delta
                if choice.is_ended:  # by a stop string, while more tokens were in transit
                    continue
                deltas.append(self._apply(choice, delta))
                if deltas[-1].finish_reason is not None:
                    await streams[choice].aclose()
            if deltas:
                yield deltas


def _sum_known(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


async def _pump(
    choice: Choice, stream: TokenStream, arrivals: asyncio.Queue[tuple[Choice, TokenDelta | EngineError]]
) -> None:
    try:
        async for delta in stream:
            arrivals.put_nowait((choice, delta))
    except EngineError as error:
        arrivals.put_nowait((choice, error))
