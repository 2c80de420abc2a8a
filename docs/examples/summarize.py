"""A complete plug-in: `POST /summarize` with its own fields, response, stream and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from api.protocols.base import (
    ChatMessage,
    ErrorDetail,
    InvalidProtocolRequest,
    Json,
    ProtocolAdapter,
    ProtocolRequest,
    StreamTranslator,
    json_line,
)


class SummaryRequest(ProtocolRequest):
    """`model`, `stream`, `temperature` and others are inherited from ProtocolRequest."""

    text: str = Field(min_length=1)
    sentences: int = Field(2, ge=1, le=20)


class SummarizeProtocol(ProtocolAdapter[SummaryRequest]):
    """A text in, `{"summary": …}` out; streamed as JSON lines."""

    name = "summarize"
    route = "/summarize"
    request_schema = SummaryRequest

    def create_prompt(self, request: SummaryRequest) -> Sequence[ChatMessage]:
        if not request.text.strip():
            raise InvalidProtocolRequest("text is empty; there is nothing to summarize", param="text")
        task = f"Summarize what the user writes in at most {request.sentences} sentences."
        return [{"role": "system", "content": task}, {"role": "user", "content": request.text}]

    def from_openai(self, answer: Mapping[str, Any], request: SummaryRequest) -> Json:
        choice = answer["choices"][0]
        return {
            "summary": choice["message"]["content"].strip(),
            "is_whole": choice["finish_reason"] == "stop",
        }

    def from_openai_stream(self, request: SummaryRequest) -> StreamTranslator:
        return _SummaryLines()

    def create_error_response(self, error: ErrorDetail) -> tuple[int, Json]:
        return error.status, {"problem": error.message}


class _SummaryLines(StreamTranslator):
    media_type = "application/x-ndjson"

    def __init__(self) -> None:
        self._finish_reason: str | None = None

    def event(self, chunk: Mapping[str, Any]) -> bytes:
        lines = []
        for choice in chunk.get("choices", ()):
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            if piece := choice["delta"].get("content"):
                lines.append(json_line({"piece": piece}))
        return b"".join(lines)

    def end(self) -> bytes:
        return json_line({"is_whole": self._finish_reason == "stop"})

    def error(self, body: Json) -> bytes:
        return json_line(body)
