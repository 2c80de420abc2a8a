"""One answer of a model as Ollama's objects: the lines of a stream, or all in one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from api.http.request_times import RequestTimes
from api.protocols.base import Json, StreamTranslator, json_line, to_json
from api.protocols.ollama import log_probabilities
from api.protocols.ollama.messages import CallPieces

MEDIA_TYPE = "application/x-ndjson"
_DONE_REASONS = {"tool_calls": "stop", "function_call": "stop"}
_NS_PER_MS = 1_000_000


def now() -> str:
    """The time as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class AnswerShape(ABC):
    """How a route writes a piece of an answer. One per model name."""

    def __init__(self, model: str) -> None:
        self.model = model  # as the client called it

    def object(self, piece: Mapping[str, Any], *, done: bool) -> dict[str, Any]:
        return {"model": self.model, "created_at": now(), **piece, "done": done}

    @abstractmethod
    def piece(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """The fields of a piece of the answer."""


class ChatShape(AnswerShape):
    """`message`."""

    def piece(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class GenerateShape(AnswerShape):
    """`response`."""

    def piece(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {"response": text}
        if thinking:
            made["thinking"] = thinking
        return made | {"tool_calls": calls} if calls else made


class Answer(StreamTranslator):
    """Translates a stream of OpenAI's; `is_collected`: the client gets one object when it has ended."""

    media_type = MEDIA_TYPE
    ends_with_error = True

    def __init__(self, shape: AnswerShape, times: RequestTimes, *, is_collected: bool) -> None:
        self.is_collected = is_collected
        self._shape = shape
        self._clock = _Clock(times)
        self._calls = CallPieces()
        self._texts: list[str] = []  # collected, as the next two
        self._thoughts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._finish_reason: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}

    def event(self, chunk: Mapping[str, Any]) -> bytes:
        self._usage = chunk.get("usage") or self._usage
        self._timings = chunk.get("timings") or self._timings
        return b"".join(self._choice(choice) for choice in chunk.get("choices") or ())

    def comment(self, text: bytes) -> bytes:
        """A space before the next line: clients read each line as JSON, and an empty one would fail them."""
        return b"" if self.is_collected else b" "

    def may_end(self) -> bool:
        return self._finish_reason is not None

    def end(self) -> bytes:
        if self.is_collected:
            return to_json(self._final())
        calls, broken = self._calls.take()
        before = b""
        if calls or broken:
            before = json_line(self._shape.object(self._shape.piece(broken, "", calls), done=False))
        return before + json_line(self._final())

    def error(self, body: Json) -> bytes:
        return json_line(body)

    def whole(self, answer: Mapping[str, Any]) -> Json:
        """An engine's whole answer, in place of the stream it was asked for."""
        self.is_collected = True
        choice = answer["choices"][0]
        self.event({**answer, "choices": [{**choice, "delta": choice.get("message")}]})
        self._clock.is_split = False
        return self._final()

    def _final(self) -> dict[str, Any]:
        """The last object; the whole answer, if it was collected."""
        calls, broken = self._calls.take()
        piece = self._shape.piece("".join(self._texts) + broken, "".join(self._thoughts), calls)
        final = self._shape.object(piece, done=True)
        final["done_reason"] = _DONE_REASONS.get(self._finish_reason or "", self._finish_reason)
        final |= durations(self._clock, self._timings) | counts(self._usage, self._timings)
        return final | {"logprobs": self._logprobs} if self._logprobs else final

    def _choice(self, choice: Mapping[str, Any]) -> bytes:
        delta = choice.get("delta") or {}
        text = delta.get("content") or choice.get("text") or ""
        thinking = delta.get("reasoning_content") or delta.get("reasoning") or ""
        if delta.get("tool_calls"):
            self._calls.add(delta["tool_calls"])
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._clock.tick(is_output=bool(text or thinking or self._calls))
        logprobs = log_probabilities.from_openai(choice.get("logprobs"))
        if self.is_collected:
            self._texts.append(text)
            self._thoughts.append(thinking)
            self._logprobs += logprobs
            return b""
        if not (text or thinking or logprobs):
            return b""
        line = self._shape.object(self._shape.piece(text, thinking, []), done=False)
        return json_line(line | {"logprobs": logprobs} if logprobs else line)


class _Clock:
    """When the first and the last piece of an answer arrived; nanoseconds."""

    def __init__(self, times: RequestTimes) -> None:
        self.times = times
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.is_split = True  # False: all came at once, so nobody knows how long the prompt took

    def tick(self, *, is_output: bool) -> None:
        if self.first_ns is None and not is_output:
            return  # a sign of life, or the role alone
        self.last_ns = time.perf_counter_ns()
        if self.first_ns is None:
            self.first_ns = self.last_ns


def durations(clock: _Clock, timings: Mapping[str, Any]) -> dict[str, int]:
    """By the engine's own clock (llama.cpp's `timings`) where it tells, else by Berth's."""
    made = load_durations(clock.times)
    if "prompt_ms" in timings and "predicted_ms" in timings:
        prompt, answer = timings["prompt_ms"], timings["predicted_ms"]
        return made | {
            "prompt_eval_duration": round(prompt * _NS_PER_MS),
            "eval_duration": round(answer * _NS_PER_MS),
        }
    began = clock.times.leased_ns or clock.times.started_ns
    last = clock.last_ns or time.perf_counter_ns()
    if not clock.is_split:
        return made | {"eval_duration": last - began}
    first = clock.first_ns or last
    return made | {"prompt_eval_duration": first - began, "eval_duration": last - first}


def load_durations(times: RequestTimes) -> dict[str, int]:
    """Of the whole request, and of its wait for the model."""
    end = time.perf_counter_ns()
    loaded = times.leased_ns or times.started_ns
    return {"total_duration": end - times.started_ns, "load_duration": loaded - times.started_ns}


def counts(usage: Mapping[str, Any], timings: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of the prompt and of the answer, where the engine tells."""
    prompt = usage.get("prompt_tokens", timings.get("prompt_n"))
    answer = usage.get("completion_tokens", timings.get("predicted_n"))
    made = {"prompt_eval_count": prompt, "eval_count": answer}
    return {name: value for name, value in made.items() if value is not None}
