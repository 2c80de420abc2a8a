"""`POST /v1/responses` and its token counter, translated to chat completions and back."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from api.protocols.base import (
    ErrorDetail,
    InvalidResponse,
    Json,
    OpenAIRequest,
    ProtocolAdapter,
    ProtocolRequest,
    RequestContext,
    StreamTranslator,
)
from api.protocols.chat_output import ChatReader, ChatStream, write_whole
from api.protocols.responses.conversation import Conversation, text_format
from api.protocols.responses.request import (
    ACCEPTED,
    IGNORED,
    PASSED_ON,
    REFUSED,
    InputRequest,
    ResponsesRequest,
    invalid,
)
from api.protocols.responses.response_object import new_response
from api.protocols.responses.store import ResponseStore
from api.protocols.responses.writer import ResponseWriter

CHAT = "/v1/chat/completions"

# OpenAI's efforts as those that chat templates and engines know.
_EFFORTS = {each: each for each in ("low", "medium", "high")}
_EFFORTS |= {"minimal": "low", "xhigh": "high", "max": "high"}

RequestT = TypeVar("RequestT", bound=InputRequest)


class _ConversationProtocol(ProtocolAdapter[RequestT]):
    """What both routes share. Made anew for each request, whose conversation it keeps."""

    def __init__(self, store: ResponseStore | None = None) -> None:
        self._store = store or ResponseStore()
        self._context = RequestContext()
        self._conversation: Conversation | None = None

    def for_request(self, context: RequestContext) -> Self:
        one = copy.copy(self)
        one._context = context
        return one

    def create_prompt(self, request: RequestT) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self._read(request, {}).chat_fields()["messages"]
        return messages

    def create_error_response(self, error: ErrorDetail) -> tuple[int, Json]:
        status, body = super().create_error_response(error)
        return 400 if status == 422 else status, body

    def _read(self, request: RequestT, ignored: dict[str, str]) -> Conversation:
        self._conversation = Conversation(request, self._store.of(self._context.owner), ignored)
        return self._conversation

    def _body(self, request: RequestT, ignored: dict[str, str]) -> dict[str, Any]:
        """The fields that make the prompt, and those for the engine alone. Raises InvalidProtocolRequest."""
        body = {"model": request.model, **self._read(request, ignored).chat_fields()}
        body |= text_format(request.text)
        body |= _reasoning_fields(request)
        for name, value in (request.model_extra or {}).items():
            if name in REFUSED and value is not None:
                raise invalid(name, "not supported")
            if name in PASSED_ON and name not in body:
                body[name] = value
            elif name not in ACCEPTED | PASSED_ON and value is not None:
                ignored[name] = IGNORED.get(name, "unknown field")
        return body


class ResponsesProtocol(_ConversationProtocol[ResponsesRequest]):
    """For an engine without this route."""

    name = "responses"
    route = "/v1/responses"
    request_schema = ResponsesRequest

    def to_openai(self, request: ResponsesRequest) -> OpenAIRequest:
        ignored: dict[str, str] = {}
        request.check(ignored)
        body = self._body(request, ignored)
        body |= request.model_dump(include=_sampling_fields(request), exclude_none=True)
        if (request.max_output_tokens or -1) > 0:
            body["max_tokens"] = request.max_output_tokens
        if request.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return OpenAIRequest(CHAT, body, ignored)

    def from_openai(self, answer: Mapping[str, Any], request: ResponsesRequest) -> Json:
        return write_whole(self._writer(request), answer)

    def from_openai_stream(self, request: ResponsesRequest) -> StreamTranslator:
        return ChatStream(self._writer(request))

    def _writer(self, request: ResponsesRequest) -> ResponseWriter:
        conversation, begun = self._conversation, self._context.begun
        if conversation is None:
            raise RuntimeError("the request has not been translated")
        if begun is not None:
            response = new_response(begun.response_id, request, begun.created_at)
        else:
            response = new_response(f"resp_{uuid.uuid4().hex}", request)
        stored = self._store.of(self._context.owner)

        def on_end(ended: dict[str, Any]) -> None:
            if request.stores:
                stored.put(ended, conversation.inputs, conversation.history)

        return ResponseWriter(
            response,
            conversation.toolbox,
            seals_reasoning=request.seals_reasoning,
            begun=begun,
            on_end=on_end,
        )


class InputTokensProtocol(_ConversationProtocol[InputRequest]):
    """Counts by asking for one token: engines tell the prompt's length with it, and keep its prefix."""

    name = "responses-input-tokens"
    route = "/v1/responses/input_tokens"
    request_schema = InputRequest

    def to_openai(self, request: InputRequest) -> OpenAIRequest:
        ignored: dict[str, str] = {}
        body = self._body(request, ignored)
        return OpenAIRequest(CHAT, {**body, "max_tokens": 1, "stream": False}, ignored)

    def from_openai(self, answer: Mapping[str, Any], request: InputRequest) -> Json:
        reader = ChatReader()
        reader.read(answer)
        if not reader.usage.prompt:
            raise InvalidResponse("it has no usage.prompt_tokens, from which tokens are counted")
        return {"object": "response.input_tokens", "input_tokens": reader.usage.prompt}


def _sampling_fields(request: InputRequest) -> set[str]:
    """The fields set whose names and meanings are a chat's."""
    own = {"max_tokens", "stream", "model", "user"}
    return (set(ProtocolRequest.model_fields) & request.model_fields_set) - own


def _reasoning_fields(request: InputRequest) -> dict[str, Any]:
    effort = (request.reasoning or {}).get("effort")
    if effort is None:
        return {}
    if effort == "none":
        given = (request.model_extra or {}).get("chat_template_kwargs") or {}
        return {"chat_template_kwargs": {"enable_thinking": False, **given}}
    if not isinstance(effort, str) or effort not in _EFFORTS:
        raise invalid(
            "reasoning.effort", f"must be none, minimal, low, medium, high or xhigh, not {effort!r}"
        )
    return {"reasoning_effort": _EFFORTS[effort]}
