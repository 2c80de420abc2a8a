"""Translates Anthropic requests to chat completions, and errors back. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from engine.errors import InvalidRequest
from engine.server.messages.bodies import (
    CountBody,
    MessagesBody,
    ThinkingAdaptive,
    ThinkingOn,
    ToolChoice,
)
from engine.server.messages.history import chat_messages
from engine.server.messages.tools import LocatedTool, check_choice, offered_tools
from engine.server.protocol.body_reader import check_derived
from engine.server.protocol.chat_body import ChatBody
from engine.server.protocol.sampling_fields import SamplingFields
from engine.server.protocol.unknown_fields import report_ignored

_ANTHROPIC_PARAMS = {
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "reasoning_effort": "output_config.effort",
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
    "tool_choice.function.name": "tool_choice.name",
}
_IN_TOOL = re.compile(r"tools\[(\d+)\]\.function\.(parameters)?")
_IN_FORMAT = re.compile(r"response_format(\.json_schema)?")


@dataclass(frozen=True, slots=True)
class ReasoningSupport:
    """Which reasoning options the model and its template support."""

    effort: bool = True
    budget: bool = True


class MessagesChat(ChatBody):
    """A chat body with as many stop strings as the Messages API allows."""

    stop: list[str] = Field(default=[])


def to_chat(body: CountBody, support: ReasoningSupport) -> ChatBody:
    """The request as a chat. Raises InvalidRequest with Anthropic's name of the field as `param`."""
    offered = offered_tools(body)
    check_choice(body, offered)
    messages = chat_messages(body)
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": messages,
        "tools": [located.function for located in offered] or None,
        **_tool_choice_fields(body),
        **_reasoning_fields(body, support),
        **_format_fields(body),
    }
    last = messages[-1]
    if last["role"] == "assistant" and last.get("content") and not last.get("tool_calls"):
        # The beginning of the answer, which the model continues.
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    if isinstance(body, MessagesBody):
        fields |= _sampling_fields(body)
    _report_ignored_fields(body)
    try:
        return check_derived(fields, MessagesChat)
    except InvalidRequest as error:
        raise renamed(error, body, offered) from error


def renamed(
    error: InvalidRequest, body: CountBody, offered: list[LocatedTool] | None = None
) -> InvalidRequest:
    """The same error with Anthropic's name of the field."""
    tools = offered_tools(body) if offered is None else offered
    is_old = body.output_config is None or body.output_config.format is None
    form = "output_format" if is_old else "output_config.format"

    def in_tool(found: re.Match[str]) -> str:
        number = int(found[1])
        path = tools[number].path if number < len(tools) else f"tools[{number}]"
        return f"{path}.input_schema" if found[2] else f"{path}."

    def rename(text: str) -> str:
        return _IN_FORMAT.sub(form, _IN_TOOL.sub(in_tool, text))

    param = None if error.param is None else _ANTHROPIC_PARAMS.get(error.param, rename(error.param))
    return error.renamed(rename(error.message), param)


def _sampling_fields(body: MessagesBody) -> dict[str, Any]:
    return {
        "max_tokens": max(body.max_tokens, 1),  # 0 reads the prompt into the cache, which needs one token
        "stop": body.stop_sequences,
        "stream": body.stream,
        **{name: getattr(body, name) for name in SamplingFields.model_fields},
    }


def _reasoning_fields(body: CountBody, support: ReasoningSupport) -> dict[str, Any]:
    is_enabled = isinstance(body.thinking, ThinkingOn | ThinkingAdaptive)
    fields: dict[str, Any] = {
        "chat_template_kwargs": {"enable_thinking": is_enabled, **(body.chat_template_kwargs or {})}
    }
    if support.effort:
        fields["reasoning_effort"] = effort_of(body)
    if support.budget and isinstance(body.thinking, ThinkingOn):
        fields["thinking_token_budget"] = body.thinking.budget_tokens
    return fields


def effort_of(body: CountBody) -> str | None:
    """The effort of the last turn that sets one, else the body's."""
    efforts = [turn.output_config.effort for turn in body.messages if turn.output_config]
    initial = body.output_config.effort if body.output_config else None
    return next((effort for effort in reversed(efforts) if effort), initial)


def _format_fields(body: CountBody) -> dict[str, Any]:
    if body.format is None:
        return {}
    schema = {"name": "answer", "schema": body.format.schema_}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _tool_choice_fields(body: CountBody) -> dict[str, Any]:
    choice = body.tool_choice
    if choice is None:
        return {}
    parallel = not getattr(choice, "disable_parallel_tool_use", False)
    if isinstance(choice, ToolChoice):
        named = {"type": "function", "function": {"name": choice.name}}
        return {"tool_choice": named, "parallel_tool_calls": parallel}
    modes = {"auto": "auto", "any": "required", "none": "none"}
    return {"tool_choice": modes[choice.type], "parallel_tool_calls": parallel}


def _report_ignored_fields(body: CountBody) -> None:
    """Report accepted fields that have no effect."""
    edits = (body.context_management or {}).get("edits")
    kinds = [edit.get("type") for edit in edits if isinstance(edit, dict)] if isinstance(edits, list) else []
    if any(kind != "clear_thinking_20251015" for kind in kinds):  # most templates clear reasoning anyway
        report_ignored("context_management", "nothing is cleared from the context")
    if body.output_config and body.output_config.task_budget is not None:
        report_ignored("output_config.task_budget", "it is not shown to the model")
