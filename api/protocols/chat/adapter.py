"""`POST /v1/chat/completions`, translated to completions of a plain transcript and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from api.protocols.base import (
    InvalidProtocolRequest,
    Json,
    OpenAIRequest,
    ProtocolAdapter,
    ProtocolRequest,
    StreamTranslator,
    sse_event,
)
from api.protocols.chat.transcript import STOP, transcript

COMPLETIONS = "/v1/completions"

# They need a chat template or a parser of the model's output, which only an engine with chats has.
_REFUSED = ("tools", "functions", "logprobs", "top_logprobs", "audio", "modalities", "prediction")
_HINTS = frozenset(
    {
        *(
            "add_generation_prompt",
            "chat_template_kwargs",
            "include_reasoning",
            "metadata",
            "parallel_tool_calls",
        ),
        *("prompt_cache_key", "reasoning_effort", "safety_identifier", "service_tier", "store", "verbosity"),
    }
)


class ChatRequest(ProtocolRequest):
    """A chat's own fields; those of completions are passed on."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = None
    n: int | None = None
    stream_options: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    tool_choice: Any = None
    tools: Any = None
    functions: Any = None
    function_call: Any = None
    logprobs: Any = None
    top_logprobs: Any = None


class ChatProtocol(ProtocolAdapter[ChatRequest]):
    """For an engine without this route."""

    name = "chat"
    route = "/v1/chat/completions"
    request_schema = ChatRequest

    def create_prompt(self, request: ChatRequest) -> str:
        return transcript(request.messages, continues_last=bool(request.continue_final_message))

    def to_openai(self, request: ChatRequest) -> OpenAIRequest:
        _check(request)
        names = (set(ProtocolRequest.model_fields) - {"user"}) & request.model_fields_set
        body = request.model_dump(include=names, exclude_none=True)
        body.pop("response_format", None)  # plain text, if it was given
        extra = request.model_extra or {}
        body |= {name: value for name, value in extra.items() if name not in _HINTS and value is not None}
        stops = [request.stop] if isinstance(request.stop, str) else (request.stop or [])
        body |= {"prompt": self.create_prompt(request), "stop": [*stops, STOP]}
        if (limit := request.max_completion_tokens or request.max_tokens) is not None:
            body["max_tokens"] = limit
        for name in ("n", "stream_options"):
            if getattr(request, name) is not None:
                body[name] = getattr(request, name)
        ignored = {"chat_template": "the model's own is unknown here: its prompt is a plain transcript"}
        return OpenAIRequest(COMPLETIONS, body, ignored)

    def from_openai(self, answer: Mapping[str, Any], request: ChatRequest) -> Json:
        choices = [
            {
                **choice,
                "message": {"role": "assistant", "content": str(choice.get("text") or "").strip()},
                "logprobs": None,
            }
            for choice in answer["choices"]
        ]
        for choice in choices:
            choice.pop("text", None)
        return {**answer, "object": "chat.completion", "choices": choices}

    def from_openai_stream(self, request: ChatRequest) -> StreamTranslator:
        return _ChatStream()


class _ChatStream(StreamTranslator):
    """Each chunk of completions as one of a chat; space before the answer is left out."""

    def __init__(self) -> None:
        self._begun: set[int] = set()  # the choices that have text
        self._opened: set[int] = set()  # those whose role has been told
        self._has_ended = False

    def event(self, chunk: Mapping[str, Any]) -> bytes:
        choices = [self._choice(choice) for choice in chunk.get("choices") or ()]
        return sse_event({**chunk, "object": "chat.completion.chunk", "choices": choices})

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"

    def may_end(self) -> bool:
        return self._has_ended

    def _choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        index, text = int(choice.get("index") or 0), str(choice.get("text") or "")
        if index not in self._begun:
            text = text.lstrip()
        delta: dict[str, Any] = {}
        if index not in self._opened:
            self._opened.add(index)
            delta = {"role": "assistant", "content": text}
        elif text:
            delta = {"content": text}
        if text:
            self._begun.add(index)
        self._has_ended = self._has_ended or bool(choice.get("finish_reason"))
        kept = {name: choice[name] for name in ("finish_reason", "stop_reason") if name in choice}
        return {"index": index, "delta": delta, "logprobs": None, **kept}


def _check(request: ChatRequest) -> None:
    """Raises InvalidProtocolRequest for fields that would change the answer and can't be translated."""
    for name in _REFUSED:
        value = getattr(request, name, None) or (request.model_extra or {}).get(name)
        if value and not (name == "tools" and request.tool_choice == "none"):
            raise InvalidProtocolRequest(
                f"{name}: not supported, as this model's engine has completions alone", param=name, status=400
            )
    if (request.response_format or {}).get("type", "text") != "text":
        raise InvalidProtocolRequest(
            "response_format: not supported, as this model's engine has completions alone; "
            "it may have structured_outputs",
            param="response_format",
            status=400,
        )
