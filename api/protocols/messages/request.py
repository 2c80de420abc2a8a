"""The body of `POST /v1/messages`, as Anthropic documents it.

Only what the translation reads is checked here: the engine checks the chat that becomes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from api.protocols.base import InvalidProtocolRequest, ProtocolRequest

Block = Mapping[str, Any]

# Fields that can't change the answer, and those that only Anthropic's own servers understand.
ACCEPTED = frozenset(
    {
        *("betas", "billing_policy", "cache_control", "context_hint", "diagnostics", "fallback_credit_token"),
        *("fallbacks", "inference_geo", "metadata", "service_tier", "speed", "user_profile_id"),
        *("workspace_id",),
    }
)
IGNORED = {
    "container": "this server can't run code in a container",
    "mcp_servers": "this server can't reach MCP servers",
    "safeguards": "this server has no safety classifier",
}
REFUSED = frozenset({"compaction", "kv_transfer_params"})
UNKNOWN_THREAD = "thread_not_found"  # by which Anthropic's SDKs know to send the whole conversation
PASSED_ON = frozenset({"chat_template_kwargs", "allowed_token_ids", "cache_salt"})


class CountRequest(ProtocolRequest):
    """The fields of a conversation."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    stop_sequences: list[str] | None = None

    @property
    def format(self) -> Mapping[str, Any] | None:
        """The format of the answer, by its newer or its older name."""
        return (self.output_config or {}).get("format") or self.output_format


class MessagesRequest(CountRequest):
    """With what is needed to generate."""

    max_tokens: int = Field(ge=0)


def check_thread(thread: object) -> None:
    """Raises InvalidProtocolRequest unless it begins a thread, which changes nothing: none is stored."""
    kind = thread.get("type") if isinstance(thread, Mapping) else None
    if kind == "continue":
        raise InvalidProtocolRequest(
            "thread: this server stores no threads; send the whole conversation with "
            'thread: {"type": "create"}',
            param="thread",
            code=UNKNOWN_THREAD,
            status=404,
        )
    if kind != "create":
        raise invalid("thread", 'must be {"type": "create"}')


def invalid(param: str, problem: str) -> InvalidProtocolRequest:
    return InvalidProtocolRequest(f"{param}: {problem}", param=param)


def type_of(block: Any, path: str) -> str:
    """Raises InvalidProtocolRequest if it is no block."""
    kind = block.get("type") if isinstance(block, Mapping) else None
    if not isinstance(kind, str):
        raise invalid(path, "must be an object with a `type`")
    return kind


def string_of(block: Block, name: str, path: str, default: str | None = None) -> str:
    """A field of a block. Raises InvalidProtocolRequest if it is no string."""
    value = block.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise invalid(f"{path}.{name}", "must be a string")
    return value


def blocks_of(content: Any, path: str) -> Sequence[Block]:
    """A turn's content as blocks. Raises InvalidProtocolRequest."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise invalid(path, "must be a string or a list of blocks")
    return content
