"""Bodies of /v1/responses, as OpenAI documents them. Types are strict, unknown fields an error."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from engine.errors import InvalidRequest
from engine.server.field_rules import FieldRules
from engine.server.generation_body import STRICT_TOOL, RequestBody, Strict, none_as

MAX_TOOLS = 512

RULES = FieldRules(
    refused={
        "cache_salt": (),
        "context_management": (),
        "conversation": (),
        "ec_transfer_params": (),
        "enable_response_messages": (False,),
        "include": ([],),
        "kv_transfer_params": (),
        "max_tool_calls": (),
        "media_io_kwargs": ({},),
        "mm_payload": ("tensors",),
        "mm_processor_kwargs": ({},),
        "moderation": (),
        "previous_input_messages": (),
        "prompt": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
        "return_mm_kwargs": (False,),
        "service_tier": ("auto", "default"),
        "session_id": (),
        "stream_options": ({}, {"include_obfuscation": False}),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
        "vllm_xargs": ({},),
        "watermarking": (False,),
    }
)


class InputText(Strict):
    type: Literal["input_text"]
    text: str


class OutputText(Strict):
    """Clients send answers back as they got them."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class ReasoningText(Strict):
    type: Literal["reasoning_text"]
    text: str


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class MessageItem(Strict):
    type: Literal["message"] = "message"
    id: str | None = None
    status: ItemStatus | None = None
    phase: str | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[InputText | OutputText, Field(discriminator="type")]]


class FunctionCallItem(Strict):
    type: Literal["function_call"]
    id: str | None = None
    status: ItemStatus | None = None
    call_id: str
    name: str
    arguments: str


class FunctionOutputItem(Strict):
    type: Literal["function_call_output"]
    id: str | None = None
    status: ItemStatus | None = None
    call_id: str
    output: str | list[InputText]


class ReasoningItem(Strict):
    type: Literal["reasoning"]
    id: str | None = None
    status: ItemStatus | None = None
    summary: list[Any] = []  # noqa: RUF012 (pydantic copies it)
    content: list[ReasoningText] | None = None
    encrypted_content: None = None


def _type_of(value: Any) -> str:
    """A message may leave its type out."""
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", "message")
    return str(kind)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_type_of),
]


class FunctionTool(Strict):
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(default=None, description=STRICT_TOOL)


class FunctionChoice(Strict):
    type: Literal["function"]
    name: str


class PlainText(Strict):
    type: Literal["text"]


class JsonObject(Strict):
    type: Literal["json_object"]


class JsonSchemaText(Strict):
    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(Strict):
    format: Annotated[PlainText | JsonObject | JsonSchemaText, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningConfig(Strict):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: None = None


class ResponsesBody(RequestBody):
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: Annotated[bool, none_as(True)] = True
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include_reasoning: Annotated[bool, none_as(True)] = True
    metadata: dict[str, str] | None = Field(default=None, description="Returned with the response.")
    store: Annotated[bool, none_as(True)] = Field(
        default=True, description="Kept in memory, the least recently used go first."
    )
    previous_response_id: str | None = None
    background: Annotated[bool, none_as(False)] = False
    stream: Annotated[bool, none_as(False)] = False
    # vLLM's, as in chat completions, which check them.
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    structured_outputs: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: int | None = None
    request_id: str | None = None
    user: str | None = Field(default=None, description="Says who asks; nothing here depends on it.")
    safety_identifier: str | None = Field(default=None, description="As `user`.")
    prompt_cache_key: str | None = Field(
        default=None, description="A hint without effect: prefixes are always shared."
    )

    @model_validator(mode="after")
    def _check_background(self) -> ResponsesBody:
        if self.background and not self.store:
            raise InvalidRequest("background needs store: true, or nobody could get it.", param="background")
        if self.background and self.stream:
            raise InvalidRequest("background and stream can't both be true.", param="background")
        return self


AS_IN_CHATS = (
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "include_reasoning",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "structured_outputs",
    "chat_template_kwargs",
    "priority",
    "request_id",
)
"""Fields that mean what they mean in chat completions."""
