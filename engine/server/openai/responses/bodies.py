"""Bodies of /v1/responses, as OpenAI and vLLM document them. Types are strict.

Fields that would change the output work or are refused by name; hints, labels and preferences are accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from engine.errors import InvalidRequest
from engine.server.openai.responses.items import Item
from engine.server.openai.responses.tools import ToolChoice, Tools
from engine.server.protocol import body_limits
from engine.server.protocol.field_rules import FieldRules
from engine.server.protocol.generation_body import StopStrings
from engine.server.protocol.provider_parts import mark_unsupported_parts
from engine.server.protocol.request_body import MINUS_ONE_AS_NONE, Ignored, RequestBody, Strict, null_as
from engine.server.protocol.sampling_fields import SamplingFields
from engine.server.protocol.unknown_fields import report_ignored

RULES = FieldRules(
    refused={
        "conversation": (),
        "ec_transfer_params": (),
        "enable_response_messages": (False,),
        "generate": (True,),
        "kv_transfer_params": (),
        "media_io_kwargs": ({},),
        "mm_payload": ("tensors",),
        "mm_processor_kwargs": ({},),
        "moderation": (),
        "personality": (),
        "previous_input_messages": (),
        "prompt": (),
        "return_mm_kwargs": (False,),
        "top_logprobs": (0,),
        "vllm_xargs": ({},),
        "watermarking": (False,),
    },
    accepted=frozenset(
        {
            "access_programs",
            "client_metadata",
            "image",  # image compression; images are not supported
            "prompt_cache_retention",
            "session_id",
        }
    ),
    ignored={"context_management": "this server can't compact conversations"},
)

ENCRYPTED_REASONING = "reasoning.encrypted_content"
_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = frozenset(
    {
        ENCRYPTED_REASONING,
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)


def _check_include(names: list[str]) -> list[str]:
    """Data of hosted tools can be requested, but there never is any."""
    for name in names:
        if name == _LOGPROBS:
            raise ValueError(f"{_LOGPROBS} is not supported: use logprobs of /v1/chat/completions instead")
        if name not in _INCLUDABLE:
            report_ignored("include", f"{name[:60]} is unknown")
    return names


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
    verbosity: Ignored = None


class ReasoningConfig(Strict):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Ignored = None  # the full reasoning is in the response
    generate_summary: Ignored = None
    context: Ignored = None  # the chat template decides which reasoning is kept
    mode: Ignored = None


class CacheOptions(Strict):
    prewarm: Literal[False] | None = None
    comparison_response_id: Ignored = None
    mode: Ignored = None
    ttl: Ignored = None


class ResponseStreamOptions(Strict):
    include_obfuscation: Ignored = None
    include_usage: Ignored = None  # the last event always has it


class InputTokensBody(RequestBody):
    """The fields that determine the model's input."""

    size_limits = body_limits.RESPONSES

    input: Annotated[
        str | Annotated[list[Item], Field(fail_fast=True)] | None, BeforeValidator(mark_unsupported_parts)
    ] = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: Annotated[bool, null_as(True)] = True
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Annotated[Literal["auto", "disabled"], null_as("disabled")] = Field(
        default="disabled", description="auto: the oldest turns are dropped until the rest fits the context."
    )
    chat_template_kwargs: dict[str, Any] | None = None


class ResponsesBody(SamplingFields, InputTokensBody):
    size_limits = body_limits.RESPONSES_GENERATION

    max_output_tokens: Annotated[int | None, MINUS_ONE_AS_NONE] = Field(default=None, ge=1)
    max_tool_calls: int | None = Field(
        default=None, description="Without effect: it applies to hosted tools only."
    )
    include: Annotated[list[str], AfterValidator(_check_include)] | None = None
    include_reasoning: Annotated[bool, null_as(True)] = True
    metadata: dict[str, str] | None = Field(default=None, description="Returned with the response.")
    store: Annotated[bool, null_as(True)] = Field(
        default=True, description="Stored in memory; the least recently used responses are evicted first."
    )
    background: Annotated[bool, null_as(False)] = False
    stream: Annotated[bool, null_as(False)] = False
    stream_options: ResponseStreamOptions | None = None
    stop: StopStrings = Field(default=[])
    thinking_token_budget: int | None = None  # validated as in chats
    user: str | None = Field(default=None, description="Without effect.")
    safety_identifier: str | None = Field(default=None, description="Without effect.")
    service_tier: str | None = Field(
        default=None, description="Without effect: there is only the default tier."
    )
    prompt_cache_key: str | None = Field(
        default=None, description="Without effect: prefixes are cached without it."
    )
    prompt_cache_options: CacheOptions | None = None

    @property
    def seals_reasoning(self) -> bool:
        return ENCRYPTED_REASONING in (self.include or ())

    @model_validator(mode="after")
    def _check_background(self) -> ResponsesBody:
        if self.background and not self.store:
            raise InvalidRequest(
                "background needs store: true, since the response is retrieved from the store.",
                param="background",
            )
        if self.background and self.stream:
            raise InvalidRequest("background and stream can't both be true.", param="background")
        return self


INPUT_CHAT_FIELDS = ("parallel_tool_calls", "chat_template_kwargs")
CHAT_FIELDS = (
    *INPUT_CHAT_FIELDS,
    *SamplingFields.model_fields,
    "include_reasoning",
    "stop",
    "stream",
    "thinking_token_budget",
)
"""Fields with the same meaning as in chats."""
