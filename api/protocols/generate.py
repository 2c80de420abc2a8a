"""`POST /generate`: a prompt, a system message, and the previous turns as two lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from api.protocols.base import (
    ChatMessage,
    InvalidProtocolRequest,
    Json,
    ProtocolAdapter,
    ProtocolRequest,
    StreamTranslator,
    sse_event,
)


class GenerateRequest(ProtocolRequest):
    """The body of `POST /generate`."""

    prompt: str = Field(description="The user's current message")
    system_info: str | None = Field(None, description="The system message")
    history_input: list[str] = Field(default=[], description="The user's previous messages, oldest first")
    history_output: list[str] = Field(default=[], description="The model's response to each of them")


class GenerateProtocol(ProtocolAdapter[GenerateRequest]):
    """Returns `{"text", "finish_reason", "usage", "model"}`; streamed, pieces of text and then the rest.

    Works for chats and for plain completions, so a subclass may only need its own `create_prompt`.
    """

    name = "generate"
    route = "/generate"
    request_schema = GenerateRequest

    def create_prompt(self, request: GenerateRequest) -> str | Sequence[ChatMessage]:
        messages: list[ChatMessage] = []
        if request.system_info:
            messages.append({"role": "system", "content": request.system_info})
        for asked, answered in self.history(request):
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answered})
        messages.append({"role": "user", "content": request.prompt})
        return messages

    def history(self, request: GenerateRequest) -> list[tuple[str, str]]:
        """The previous turns. Raises InvalidProtocolRequest if the lists differ in length."""
        num_asked, num_answered = len(request.history_input), len(request.history_output)
        if num_asked != num_answered:
            raise InvalidProtocolRequest(
                f"history_output has {num_answered} entries and history_input {num_asked}; "
                "they must have the same length",
                param="history_output",
                code="history_mismatch",
            )
        return list(zip(request.history_input, request.history_output, strict=True))

    def from_openai(self, answer: Mapping[str, Any], request: GenerateRequest) -> Json:
        choice = answer["choices"][0]
        return {
            **_text_of(choice.get("message", choice)),
            "finish_reason": choice.get("finish_reason"),
            "usage": answer.get("usage"),
            "model": answer.get("model"),
        }

    def from_openai_stream(self, request: GenerateRequest) -> StreamTranslator:
        return _GenerateStream()


class _GenerateStream(StreamTranslator):
    """`{"text"}` for each piece; then one event with finish reason, usage and model, then `[DONE]`."""

    def __init__(self) -> None:
        self._finish_reason: str | None = None
        self._usage: Json = None
        self._model: str | None = None

    def event(self, chunk: Mapping[str, Any]) -> bytes:
        self._model = chunk.get("model") or self._model
        self._usage = chunk.get("usage") or self._usage
        pieces = []
        for choice in chunk["choices"]:
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            text = _text_of(choice.get("delta", choice))
            if any(text.values()):
                pieces.append(sse_event(text))
        return b"".join(pieces)

    def end(self) -> bytes:
        last = {
            "text": "",
            "finish_reason": self._finish_reason,
            "usage": self._usage,
            "model": self._model,
        }
        return sse_event(last) + b"data: [DONE]\n\n"


def _text_of(message: Mapping[str, Any]) -> dict[str, str]:
    """The text of a chat's message or delta, or of a completion's choice, and its reasoning, if any."""
    text = {"text": message.get("content") or message.get("text") or ""}
    if reasoning := message.get("reasoning") or message.get("reasoning_content"):
        text["reasoning"] = reasoning
    return text
