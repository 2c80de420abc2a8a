"""The body of `POST /v1/responses`. Only what the translation reads is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from api.protocols.base import InvalidProtocolRequest, ProtocolRequest

Item = Mapping[str, Any]

ENCRYPTED_REASONING = "reasoning.encrypted_content"

# Fields that can't change the answer, and those that only OpenAI's own servers understand.
ACCEPTED = frozenset(
    {
        *("access_programs", "client_metadata", "image", "max_tool_calls", "prompt_cache_key"),
        *("prompt_cache_options", "prompt_cache_retention", "safety_identifier", "service_tier"),
        *("session_id", "stream_options"),
    }
)
IGNORED = {"context_management": "this server can't compact conversations"}
REFUSED = frozenset(
    {
        *("conversation", "generate", "moderation", "personality", "previous_input_messages", "prompt"),
        *("kv_transfer_params", "watermarking"),
    }
)
PASSED_ON = frozenset({"chat_template_kwargs", "allowed_token_ids", "cache_salt", "include_reasoning"})
_INCLUDABLE = frozenset(
    {
        *(ENCRYPTED_REASONING, "code_interpreter_call.outputs", "computer_call_output.output.image_url"),
        *("file_search_call.results", "message.input_image.image_url", "web_search_call.action.sources"),
        *("web_search_call.results",),
    }
)


class InputRequest(ProtocolRequest):
    """The fields that make the model's input."""

    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    truncation: str | None = None
    top_logprobs: int | None = None


class ResponsesRequest(InputRequest):
    """With what is needed to generate."""

    max_output_tokens: int | None = Field(None, ge=-1)
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    background: bool | None = None

    @property
    def stores(self) -> bool:
        return self.store is not False

    @property
    def seals_reasoning(self) -> bool:
        return ENCRYPTED_REASONING in (self.include or ())

    def check(self, ignored: dict[str, str]) -> None:
        """Raises InvalidProtocolRequest for what can't be served; notes what has no effect."""
        if self.background:
            raise invalid(
                "background", "needs an engine that has /v1/responses itself; this one has chats only"
            )
        if self.top_logprobs:
            raise invalid("top_logprobs", "not supported; use those of /v1/chat/completions")
        for name in self.include or ():
            if name == "message.output_text.logprobs":
                raise invalid("include", f"{name} is not supported; use logprobs of /v1/chat/completions")
            if name not in _INCLUDABLE:
                ignored["include"] = f"{name[:60]} is unknown"
        if self.truncation == "auto":
            ignored["truncation"] = "a conversation that is too long is refused by the engine"


def invalid(
    param: str, problem: str, *, status: int = 422, code: str | None = None
) -> InvalidProtocolRequest:
    return InvalidProtocolRequest(f"{param}: {problem}", param=param, status=status, code=code)


def string_of(value: Mapping[str, Any], name: str, path: str, default: str | None = None) -> str:
    """A field of an object. Raises InvalidProtocolRequest if it is no string."""
    found = value.get(name)
    if found is None and default is not None:
        return default
    if not isinstance(found, str):
        raise invalid(f"{path}.{name}", "must be a string")
    return found
