"""What a protocol adapter is. Plug-ins subclass `ProtocolAdapter`; docs/plugins.md shows how.

An adapter translates, nothing more: it sees no sockets and no engines. Of each there is one object for all
requests, so whatever belongs to a single request lives in the request or in its `StreamTranslator`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

EVENT_STREAM = "text/event-stream"

# Errors of requests are of this type in OpenAI's envelope.
INVALID_REQUEST = "invalid_request_error"

Json = Any  # whatever `json.loads` gives
ChatMessage = Mapping[str, Any]  # one of OpenAI's `messages`


class ProtocolRequest(BaseModel):
    """What any protocol's request may say: the model, whether to stream, and how to sample.

    Names are OpenAI's and vLLM's. Types are checked here, ranges by the engine. A subclass adds its own;
    unknown ones are errors, as a misspelt field must not be ignored.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

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

    def openai_fields(self) -> dict[str, Any]:
        """The fields above that the client has given, ready for OpenAI's body; null counts as not given."""
        given = self.model_dump(include=set(ProtocolRequest.model_fields), exclude_none=True)
        return {name: value for name, value in given.items() if name in self.model_fields_set}


RequestT = TypeVar("RequestT", bound=ProtocolRequest)


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """A request as it goes on: a path under /v1/ and its JSON body."""

    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """What went wrong, as OpenAI's envelope has it, and the HTTP status (502 within a stream)."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class InvalidProtocolRequest(Exception):
    """The request can't be translated; an adapter raises it, the client gets it as a 422."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class StreamTranslator(ABC):
    """Turns one answer's stream into the protocol's, piece by piece; each request has its own.

    What a method returns is sent at once; empty bytes send nothing.
    """

    media_type: ClassVar[str] = EVENT_STREAM

    @abstractmethod
    def event(self, chunk: Mapping[str, Any]) -> bytes:
        """One of OpenAI's chunks."""

    @abstractmethod
    def end(self) -> bytes:
        """What comes last; called once, unless the stream breaks."""

    def error(self, body: Json) -> bytes:
        """The last thing of a stream that breaks; `body` is what `create_error_response` made."""
        return sse_event(body)


class ProtocolAdapter(ABC, Generic[RequestT]):
    """One protocol: where it is asked for, what may be asked, and how that is said to OpenAI's API."""

    name: ClassVar[str]  # what `protocol:` in models.yaml says
    route: ClassVar[str]  # the path it answers, POST only
    request_schema: ClassVar[type[ProtocolRequest]]  # RequestT, for validation

    @abstractmethod
    def create_prompt(self, request: RequestT) -> str | Sequence[ChatMessage]:
        """Chat messages, or a text that is to be completed as it is.

        Raises InvalidProtocolRequest where the fields make no prompt together.
        """

    def to_openai(self, request: RequestT) -> OpenAIRequest:
        """The request that goes to the model; without `model`, the default one is put in."""
        body = request.openai_fields()
        if request.stream:
            body["stream_options"] = {"include_usage": True}
        prompt = self.create_prompt(request)
        if isinstance(prompt, str):
            return OpenAIRequest("/v1/completions", {**body, "prompt": prompt})
        return OpenAIRequest("/v1/chat/completions", {**body, "messages": list(prompt)})

    @abstractmethod
    def from_openai(self, answer: Mapping[str, Any], request: RequestT) -> Json:
        """The protocol's answer, as JSON, for OpenAI's."""

    def from_openai_stream(self, request: RequestT) -> StreamTranslator:
        """What translates the answer to a request with `stream`. RoutedRequest for before the request is sent."""
        raise InvalidProtocolRequest(f"the protocol {self.name!r} can't stream", param="stream")

    def create_error_response(self, error: ErrorDetail) -> tuple[int, Json]:
        """Status and body of an error; OpenAI's envelope unless overridden."""
        inside = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
        return error.status, {"error": inside}


def sse_event(data: Json) -> bytes:
    """A server-sent event that holds this as JSON."""
    return b"data: " + to_json(data) + b"\n\n"


def json_line(data: Json) -> bytes:
    """One line of a JSON-lines stream."""
    return to_json(data) + b"\n"


def to_json(data: Json) -> bytes:
    """Compact JSON. Raises ValueError for NaN and infinities, which JSON doesn't have."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")  # halves of surrogate pairs, which a model may write
