"""The interface of protocol adapters. Plug-ins subclass `ProtocolAdapter`; see docs/plugins.md.

An adapter only translates: it sees no sockets and no engines. One object serves all requests, so the state of
a single request belongs into the request or its `StreamTranslator`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator

from api.http.request_times import RequestTimes

EVENT_STREAM = "text/event-stream"

# The type of request errors in OpenAI's envelope.
INVALID_REQUEST = "invalid_request_error"

Json = Any  # any value that `json.loads` returns
ChatMessage = Mapping[str, Any]  # one of OpenAI's `messages`


# Set by the adapter, or answered in parts of a response that adapters don't translate.
_NOT_PASSED_ON = frozenset(
    [
        "best_of",
        "function_call",
        "functions",
        "logprob_token_ids",
        "logprobs",
        "messages",
        "n",
        "prompt",
        "prompt_logprobs",
        "return_token_ids",
        "stream_options",
        "tool_choice",
        "tools",
        "top_logprobs",
    ]
)


class ProtocolRequest(BaseModel):
    """The fields of any protocol's request: the model, whether to stream, and sampling parameters.

    Names are OpenAI's and vLLM's. Types of these fields are checked here, ranges by the engine. A subclass
    adds its own. All others are passed on: the engine applies, refuses or reports them.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)

    model: str | None = None  # None = DEFAULT_MODEL
    stream: bool = False
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: list[str] | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    priority: int | None = None
    user: str | None = None
    keep_alive: str | float | None = None
    _times: RequestTimes = PrivateAttr(default_factory=RequestTimes)

    @property
    def times(self) -> RequestTimes:
        """When it arrived, and when an engine was ready for it."""
        return self._times

    @model_validator(mode="after")
    def _check_passed_on(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in _NOT_PASSED_ON and value is not None:
                raise InvalidProtocolRequest(f"{name}: this protocol does not support it", param=name)
        return self

    def openai_fields(self) -> dict[str, Any]:
        """The fields for OpenAI's body: those that the client has set, but not null, without a subclass's."""
        passed_on = {*ProtocolRequest.model_fields, *(self.model_extra or {})}
        given = self.model_dump(include=passed_on, exclude_none=True)
        return {name: value for name, value in given.items() if name in self.model_fields_set}


RequestT = TypeVar("RequestT", bound=ProtocolRequest)


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """A translated request: a path under /v1/ and its JSON body."""

    path: str
    body: Mapping[str, Any]
    ignored: Mapping[str, str] = field(default_factory=dict)  # fields without effect, and why: for a warning


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """In place of an `OpenAIRequest`: load a model, or unload it; its engine is asked nothing."""

    model: str
    answer: Callable[[], Json]  # the response, once that is done
    unloads: bool = False


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """An error with the fields of OpenAI's envelope, and the HTTP status (502 within a stream)."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    request_id: str = ""


class InvalidProtocolRequest(Exception):
    """Raised by an adapter for a request that it can't translate; the client gets it as a 422."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 422
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


class InvalidResponse(Exception):
    """An engine's response does not conform to OpenAI's API. An adapter may raise it too."""


@dataclass(slots=True)
class BegunStream:
    """A stream whose first events Berth has sent, because its model was not ready yet."""

    response_id: str
    created_at: int
    num_events: int = 0
    is_continued: bool = False  # by an adapter, with the same id


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What an adapter may know of a request besides its body."""

    owner: str = ""  # of what the request creates
    begun: BegunStream | None = None


class StreamTranslator(ABC):
    """Translates the stream of one response into the protocol's, piece by piece; each request has its own.

    The bytes that a method returns are sent at once; empty bytes send nothing.
    """

    media_type: ClassVar[str] = EVENT_STREAM
    is_collected: bool = False  # the client gets no stream, but what `end` returns, as JSON
    ends_with_error: ClassVar[bool] = False  # cleanly, as no client takes an error for a complete answer

    @abstractmethod
    def event(self, chunk: Mapping[str, Any]) -> bytes:
        """Translate one of OpenAI's chunks."""

    @abstractmethod
    def end(self) -> bytes:
        """The last bytes of the stream; called once, unless the stream breaks."""

    def may_end(self) -> bool:
        """Whether a stream that stops here without `[DONE]` is complete."""
        return True

    def comment(self, text: bytes) -> bytes:
        """A sign of life while the model loads or reads its prompt: one of the engine's or Berth's comments.

        A protocol whose clients count only its own events as life writes such an event here.
        """
        return b":" + text + b"\n\n" if self.media_type == EVENT_STREAM else b""

    def error(self, body: Json) -> bytes:
        """The last bytes of a stream that breaks; `body` is from `create_error_response`."""
        return sse_event(body)


class ProtocolAdapter(ABC, Generic[RequestT]):
    """One protocol: its route, its requests, and their translation to and from OpenAI's API."""

    name: ClassVar[str]  # the value of `protocol:` in models.yaml
    route: ClassVar[str]  # its path, POST only
    request_schema: ClassVar[type[ProtocolRequest]]  # RequestT, for validation
    headers_with_id: ClassVar[Sequence[bytes]] = ()  # of its responses, besides x-request-id

    def for_request(self, context: RequestContext) -> Self:
        """The adapter for one request; another object if it keeps state for it."""
        return self

    @abstractmethod
    def create_prompt(self, request: RequestT) -> str | Sequence[ChatMessage]:
        """Chat messages, or a text to be completed as it is.

        Raises InvalidProtocolRequest if the fields do not form a prompt.
        """

    def to_openai(self, request: RequestT) -> OpenAIRequest | LoadRequest:
        """The request for the model; if its body has no `model`, the default model is used."""
        body = request.openai_fields()
        if request.stream:
            body["stream_options"] = {"include_usage": True}
        prompt = self.create_prompt(request)
        if isinstance(prompt, str):
            return OpenAIRequest("/v1/completions", {**body, "prompt": prompt})
        return OpenAIRequest("/v1/chat/completions", {**body, "messages": list(prompt)})

    @abstractmethod
    def from_openai(self, answer: Mapping[str, Any], request: RequestT) -> Json:
        """Translate a whole response of OpenAI's; returns the protocol's, as JSON."""

    def from_openai_stream(self, request: RequestT) -> StreamTranslator:
        """The translator for a request with `stream`. Called before the request is sent."""
        raise InvalidProtocolRequest(f"the protocol {self.name!r} does not support streaming", param="stream")

    def translator_for(self, request: RequestT) -> StreamTranslator | None:
        """The translator for a request; None: `from_openai` translates the whole response."""
        return self.from_openai_stream(request) if request.stream else None

    def create_error_response(self, error: ErrorDetail) -> tuple[int, Json]:
        """Status and body of an error; OpenAI's envelope unless overridden."""
        inside = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
        return error.status, {"error": inside}


def sse_event(data: Json) -> bytes:
    """A server-sent event with `data` as JSON."""
    return b"data: " + to_json(data) + b"\n\n"


def json_line(data: Json) -> bytes:
    """One line of a JSON-lines stream."""
    return to_json(data) + b"\n"


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def to_json(data: Json) -> bytes:
    """Compact JSON. Raises ValueError for NaN and infinities, which JSON can't express."""
    return _ENCODER.encode(data).encode("utf-8", "replace")  # a model may produce lone surrogates
