"""`POST /v1/messages` and its token counter, translated to chat completions and back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, TypeVar

from api.http.dialects import anthropic_type
from api.protocols.base import (
    ErrorDetail,
    InvalidResponse,
    Json,
    OpenAIRequest,
    ProtocolAdapter,
    ProtocolRequest,
    StreamTranslator,
)
from api.protocols.chat_output import ChatReader, ChatStream, write_whole
from api.protocols.messages.request import (
    ACCEPTED,
    IGNORED,
    PASSED_ON,
    REFUSED,
    UNKNOWN_THREAD,
    CountRequest,
    MessagesRequest,
    check_thread,
    invalid,
)
from api.protocols.messages.tools import tool_fields
from api.protocols.messages.turns import chat_messages
from api.protocols.messages.writer import MessageWriter

CHAT = "/v1/chat/completions"

# Anthropic's efforts as those that chat templates and engines know.
_EFFORTS = {each: each for each in ("low", "medium", "high")}
_EFFORTS |= {"minimal": "low", "xhigh": "high", "max": "high"}

RequestT = TypeVar("RequestT", bound=CountRequest)


class _AnthropicProtocol(ProtocolAdapter[RequestT]):
    """What both routes share."""

    headers_with_id = (b"request-id",)  # where Anthropic's SDKs look for it

    def create_prompt(self, request: RequestT) -> list[dict[str, Any]]:
        return chat_messages(request, {})

    def create_error_response(self, error: ErrorDetail) -> tuple[int, Json]:
        status = 400 if error.status == 422 else error.status
        inside: dict[str, Any] = {"type": anthropic_type(status), "message": error.message}
        if error.code == UNKNOWN_THREAD:
            inside["details"] = {"error_code": error.code}
        return status, {"type": "error", "error": inside, "request_id": error.request_id}


class MessagesProtocol(_AnthropicProtocol[MessagesRequest]):
    """For an engine without this route."""

    name = "messages"
    route = "/v1/messages"
    request_schema = MessagesRequest

    def to_openai(self, request: MessagesRequest) -> OpenAIRequest:
        ignored: dict[str, str] = {}
        body = _conversation(request, ignored)
        body |= request.model_dump(include=_sampling_fields(request), exclude_none=True)
        body["max_tokens"] = max(request.max_tokens, 1)
        if request.stop_sequences:
            body["stop"] = request.stop_sequences
        if request.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return OpenAIRequest(CHAT, body, ignored)

    def from_openai(self, answer: Mapping[str, Any], request: MessagesRequest) -> Json:
        return write_whole(_writer(request), answer)

    def from_openai_stream(self, request: MessagesRequest) -> StreamTranslator:
        return ChatStream(_writer(request))


class CountTokensProtocol(_AnthropicProtocol[CountRequest]):
    """Counts by asking for one token: engines tell the prompt's length with it, and keep its prefix."""

    name = "messages-count-tokens"
    route = "/v1/messages/count_tokens"
    request_schema = CountRequest

    def to_openai(self, request: CountRequest) -> OpenAIRequest:
        ignored: dict[str, str] = {}
        body = _conversation(request, ignored)
        return OpenAIRequest(CHAT, {**body, "max_tokens": 1, "stream": False}, ignored)

    def from_openai(self, answer: Mapping[str, Any], request: CountRequest) -> Json:
        reader = ChatReader()
        reader.read(answer)
        if not reader.usage.prompt:
            raise InvalidResponse("it has no usage.prompt_tokens, from which tokens are counted")
        return {"input_tokens": reader.usage.prompt}


def _writer(request: MessagesRequest) -> MessageWriter:
    return MessageWriter(request.model, request.max_tokens)


def _conversation(request: CountRequest, ignored: MutableMapping[str, str]) -> dict[str, Any]:
    """The fields that make the prompt, and those for the engine alone. Raises InvalidProtocolRequest."""
    messages = chat_messages(request, ignored)
    body: dict[str, Any] = {"model": request.model, "messages": messages}
    body |= tool_fields(request, ignored)
    body |= _reasoning_fields(request)
    body |= _format_fields(request)
    last = messages[-1]
    if last["role"] == "assistant" and last.get("content") and not last.get("tool_calls"):
        # The beginning of the answer, which the model continues.
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    for name, value in (request.model_extra or {}).items():
        if name in REFUSED and value is not None:
            raise invalid(name, "not supported")
        if name == "thread" and value is not None:
            check_thread(value)
        elif name in PASSED_ON and name not in body:
            body[name] = value
        elif name not in ACCEPTED | PASSED_ON and value is not None:
            ignored[name] = IGNORED.get(name, "unknown field")
    _note_ignored(request, ignored)
    return body


def _sampling_fields(request: CountRequest) -> set[str]:
    """The fields set whose names and meanings are a chat's."""
    return (set(ProtocolRequest.model_fields) & request.model_fields_set) - {"max_tokens", "stop", "stream"}


def _reasoning_fields(request: CountRequest) -> dict[str, Any]:
    kind = (request.thinking or {}).get("type", "disabled")
    if kind not in ("enabled", "adaptive", "disabled", "between_tools"):
        raise invalid("thinking.type", f"must be enabled, adaptive or disabled, not {kind!r}")
    given = (request.model_extra or {}).get("chat_template_kwargs") or {}
    if not isinstance(given, Mapping):
        raise invalid("chat_template_kwargs", "must be an object")
    fields: dict[str, Any] = {
        "chat_template_kwargs": {"enable_thinking": kind in ("enabled", "adaptive"), **given}
    }
    if (effort := _EFFORTS.get(str(_effort_of(request)))) is not None:
        fields["reasoning_effort"] = effort
    return fields


def _effort_of(request: CountRequest) -> Any:
    """The effort of the last turn that sets one, else the body's."""
    for message in reversed(request.messages):
        config = message.get("output_config")
        if isinstance(config, Mapping) and config.get("effort"):
            return config["effort"]
    return (request.output_config or {}).get("effort")


def _format_fields(request: CountRequest) -> dict[str, Any]:
    if (form := request.format) is None:
        return {}
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        raise invalid("output_config.format", "must be an object of type json_schema")
    if not isinstance(form.get("schema"), Mapping):
        raise invalid("output_config.format.schema", "must be a JSON schema")
    schema = {"name": "answer", "schema": form["schema"]}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _note_ignored(request: CountRequest, ignored: MutableMapping[str, str]) -> None:
    """Fields of Anthropic's that are accepted and have no effect here."""
    edits = (request.context_management or {}).get("edits")
    kinds = [edit.get("type") for edit in edits if isinstance(edit, dict)] if isinstance(edits, list) else []
    if any(kind != "clear_thinking_20251015" for kind in kinds):  # most templates clear reasoning anyway
        ignored["context_management"] = "nothing is cleared from the context"
    if (request.output_config or {}).get("task_budget") is not None:
        ignored["output_config.task_budget"] = "it is not shown to the model"
    if (request.thinking or {}).get("budget_tokens") is not None:
        ignored["thinking.budget_tokens"] = "only max_tokens limits the reasoning"
