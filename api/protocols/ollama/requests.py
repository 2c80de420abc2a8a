"""The bodies of Ollama's requests to a model, and what all of them become in OpenAI's."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from api.protocols.base import InvalidProtocolRequest, ProtocolRequest
from api.protocols.ollama.messages import Message

_LEVELS = ("low", "medium", "high", "max")
_MAX_TOP_LOGPROBS = 20
_ZERO_UNITS = ("ns", "us", "µs", "ms", "s", "m", "h")


def _or_true(value: Any) -> Any:
    return True if value is None else value


class OllamaRequest(ProtocolRequest):
    """The fields that all have."""

    model: str | None = None
    options: dict[str, Any] | None = Field(None, description="Sampling options; see docs/ollama.md")

    @property
    def unloads(self) -> bool:
        """Whether `keep_alive` is 0, as a number or a duration."""
        value = self.keep_alive
        if isinstance(value, str):
            number = value.strip().lstrip("+-")
            for unit in _ZERO_UNITS:
                if number.endswith(unit):
                    number = number.removesuffix(unit)
                    break
            return bool(number) and not number.strip("0.")
        return value is not None and not value


class AnsweringRequest(OllamaRequest):
    """A request for text: streamed unless `stream` is false."""

    stream: Annotated[bool, BeforeValidator(_or_true)] = True
    format: Any = Field(None, description='"json", or a JSON schema')
    think: bool | str | None = Field(None, description="Whether to reason first, or how much")
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = Field(None, description="Without effect: a prompt that doesn't fit is refused")
    shift: bool | None = Field(None, description="Without effect: an answer ends where the context does")
    debug_render_only: bool | None = Field(None, alias="_debug_render_only")

    def check(self) -> None:
        """Raises InvalidProtocolRequest."""
        if self.debug_render_only:
            raise _refusal("_debug_render_only", "Berth can't show a prompt as its engine renders it")
        if not 0 <= (self.top_logprobs or 0) <= _MAX_TOP_LOGPROBS:
            raise _refusal("top_logprobs", f"must be between 0 and {_MAX_TOP_LOGPROBS}")

    def openai_format(self) -> dict[str, Any]:
        """`format` as OpenAI's `response_format`, if it is given."""
        wanted = self.format
        if wanted is None or wanted == "":
            return {}
        if wanted == "json":
            return {"response_format": {"type": "json_object"}}
        if isinstance(wanted, dict):
            schema = {"name": "format", "schema": wanted}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        raise _refusal("format", f'expected "json" or a JSON schema, not {str(wanted)[:100]!r}')

    def openai_reasoning(self) -> dict[str, Any]:
        """`think` as the fields that engines and templates know, if it is given."""
        think = self.think
        if isinstance(think, str) and think not in _LEVELS:
            raise _refusal(
                "think", f"expected true, false or one of {', '.join(_LEVELS)}, not {think[:100]!r}"
            )
        if think is None:
            return {}
        switches = {"enable_thinking": bool(think), "thinking": bool(think)}
        effort = {"reasoning_effort": think} if isinstance(think, str) else {}
        return {**effort, "chat_template_kwargs": switches}


class OllamaChatRequest(AnsweringRequest):
    """The body of `POST /api/chat`."""

    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerateRequest(AnsweringRequest):
    """The body of `POST /api/generate`."""

    prompt: str | None = None
    suffix: str | None = Field(None, description="The text after the answer, where the engine can insert")
    system: str | None = None
    template: str | None = Field(None, description="Refused: Berth uses the model's own chat template")
    context: list[int] | None = Field(None, description="Refused unless empty: use /api/chat for turns")
    raw: bool | None = Field(None, description="Complete the prompt as it is, without a chat template")
    images: list[str] | None = None
    width: int | None = None  # of generated images; without effect on text
    height: int | None = None
    steps: int | None = None

    def check(self) -> None:
        super().check()
        if self.raw and (self.template or self.system or self.context):
            raise InvalidProtocolRequest(
                "raw mode does not support template, system, or context", param="raw", status=400
            )
        if self.template:
            raise _refusal("template", "Berth uses the model's own chat template; leave it out, or use raw")
        if self.context:
            raise _refusal("context", "Berth keeps no conversations; use /api/chat with `messages`")


class EmbedRequest(OllamaRequest):
    """The body of `POST /api/embed`."""

    input: Any = None
    truncate: bool | None = Field(None, description="Truncate inputs that don't fit; default true")
    dimensions: int | None = Field(None, description="Length of the vectors; 0 = the model's")

    def texts(self) -> list[str]:
        """The inputs, none for a request that only loads. Raises InvalidProtocolRequest."""
        given = self.input
        if given is None or given == "":
            return []
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InvalidProtocolRequest("invalid input type", param="input", status=400)
        return texts


class EmbeddingsRequest(OllamaRequest):
    """The body of `POST /api/embeddings`, which `/api/embed` has replaced."""

    prompt: str | None = None


def _refusal(field: str, reason: str) -> InvalidProtocolRequest:
    return InvalidProtocolRequest(f"{field}: {reason}", param=field, status=400)
