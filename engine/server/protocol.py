"""Request bodies: what we take, checked as OpenAI and vLLM document it. Knows nothing of tokens.

Fields that they know and we don't yet are listed in engine/server/refused_fields.py. Types are strict: a
number in quotes is an error, not a number.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from engine.errors import InvalidRequest

MAX_PROMPTS = 1024
MAX_STOPS = 4
MAX_CHOICES = 128
_INT64 = 2**63

TokenIds = list[int]


class Strict(BaseModel):
    """An unknown field is an error: a misspelt one must not be ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class RequestBody(Strict):
    model: str | None = None  # None = the one there is


class StreamOptions(Strict):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


def _check_stops(value: str | list[str] | None) -> list[str]:
    stops = [value] if isinstance(value, str) else value or []
    if len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} stop strings, not {len(stops)}")
    if "" in stops:
        raise ValueError("a stop string can't be empty")
    return stops


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_prompt(value: Any) -> list[str | TokenIds]:
    """Any of the four shapes, as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(_is_id(item) for item in value):
            return [value]
        if all(isinstance(item, str) for item in value) or all(
            isinstance(item, list) and all(_is_id(token) for token in item) for item in value
        ):
            if len(value) > MAX_PROMPTS:
                raise ValueError(f"at most {MAX_PROMPTS} prompts, not {len(value)}")
            return value
    raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")


def _none_as(default: Any) -> BeforeValidator:
    """Both protocols treat null as not given."""
    return BeforeValidator(lambda value: default if value is None else value)


class GenerationBody(RequestBody):
    """What completions and chats share. None means: not given."""

    n: Annotated[int, _none_as(1), Field(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: int | None = Field(default=None, ge=0)
    min_tokens: Annotated[int, _none_as(0), Field(ge=0)] = 0
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)
    stop: Annotated[str | list[str] | None, AfterValidator(_check_stops)] = []
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], _none_as([])] = []
    ignore_eos: Annotated[bool, _none_as(False)] = False
    skip_special_tokens: Annotated[bool, _none_as(True)] = True
    include_stop_str_in_output: Annotated[bool, _none_as(False)] = False
    stream: Annotated[bool, _none_as(False)] = False
    stream_options: StreamOptions | None = None
    priority: Annotated[int, _none_as(0), Field(ge=-_INT64, lt=_INT64)] = 0
    request_id: str | None = Field(default=None, min_length=1, max_length=256, pattern=r"^[!-~]+$")
    user: str | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "stream_options can only be given with stream: true.", param="stream_options"
            )
        return self

    @property
    def stops(self) -> list[str]:
        return self.stop  # type: ignore[return-value]  # the validator has made a list of it

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class CompletionBody(GenerationBody):
    prompt: Annotated[list[Any], BeforeValidator(_check_prompt)]
    echo: Annotated[bool, _none_as(False)] = False
    add_special_tokens: Annotated[bool, _none_as(True)] = True


class FunctionCall(Strict):
    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(Strict):
    id: str | None = None
    index: int | None = Field(default=None, exclude=True)  # some clients send back what a stream gave them
    type: Literal["function"] = "function"
    function: FunctionCall


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """One turn. Clients send assistants' messages back as they got them, nulls and all."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = Field(default=None, exclude=True)
    annotations: None = Field(default=None, exclude=True)
    audio: None = Field(default=None, exclude=True)
    function_call: None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.reasoning)):
            raise ValueError(f"a message of role {self.role} needs content")
        return self


class FunctionDefinition(Strict):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: FunctionDefinition


class ConversationBody(RequestBody):
    """A conversation to be rendered by the chat template."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: Annotated[bool, _none_as(True)] = True
    add_special_tokens: Annotated[bool, _none_as(False)] = False


class ChatBody(GenerationBody, ConversationBody):
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    tool_choice: Literal["none", "auto"] | None = None


class TokenizePromptBody(RequestBody):
    prompt: str
    add_special_tokens: Annotated[bool, _none_as(True)] = True
    return_token_strs: Annotated[bool, _none_as(False)] = False


class TokenizeChatBody(ConversationBody):
    return_token_strs: Annotated[bool, _none_as(False)] = False


class DetokenizeBody(RequestBody):
    tokens: list[Annotated[int, Field(ge=0)]]
