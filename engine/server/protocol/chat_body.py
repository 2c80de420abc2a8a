"""The body of /v1/chat/completions, checked as OpenAI and vLLM document it.

Fields that they define and that this server does not use are listed in field_rules.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from engine.errors import InvalidRequest
from engine.server.protocol import body_limits
from engine.server.protocol.conversation_body import AllowedToolsChoice, ConversationBody, NamedTool
from engine.server.protocol.generation_body import GenerationBody
from engine.server.protocol.request_body import MINUS_ONE_AS_NONE, null_as


class ChatBody(GenerationBody, ConversationBody):
    size_limits = body_limits.CHAT

    echo: Annotated[bool, null_as(False)] = Field(
        default=False, description="Prepend the last message to the answer if it is the assistant's."
    )
    return_prompt_text: Annotated[bool, null_as(False)] = Field(
        default=False, description="Return the rendered prompt as `prompt_text`."
    )
    max_completion_tokens: Annotated[int | None, MINUS_ONE_AS_NONE] = Field(default=None, ge=1)
    max_tokens: Annotated[int | None, MINUS_ONE_AS_NONE] = Field(default=None, ge=1)
    logprobs: Annotated[bool, null_as(False)] = False
    top_logprobs: int | None = Field(default=None, ge=-1, description="-1 = the whole vocabulary.")
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedTool | AllowedToolsChoice, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: Annotated[bool, null_as(True)] = True
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None,
        description="none sets the template's enable_thinking to false, others set it to true.",
    )
    include_reasoning: Annotated[bool, null_as(True)] = True
    thinking_token_budget: int | None = Field(
        default=None, ge=-1, description="At most this many tokens of reasoning; -1 = no limit."
    )

    @model_validator(mode="after")
    def _check_chat(self) -> ChatBody:
        if self.top_logprobs is not None and self.top_logprobs != 0 and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise InvalidRequest(
                "tool_choice needs tools: give at least one function tool.", param="tool_choice"
            )
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise InvalidRequest("tools: two tools have the same name.", param="tools")
        if isinstance(self.tool_choice, NamedTool):
            _check_named({self.tool_choice.function.name}, names, "tool_choice.function.name")
        if isinstance(self.tool_choice, AllowedToolsChoice):
            _check_named(self.tool_choice.allowed_tools.names, names, "tool_choice.allowed_tools.tools")
        return self

    @property
    def chosen_tool(self) -> str:
        """none, auto, required, or the name of the tool to call."""
        match self.tool_choice:
            case NamedTool():
                return self.tool_choice.function.name
            case AllowedToolsChoice():
                return self.tool_choice.allowed_tools.mode
            case _:
                return self.tool_choice or "auto"

    def with_allowed_tools(self) -> ChatBody:
        """The same request with only the tools that `tool_choice` allows."""
        if not isinstance(self.tool_choice, AllowedToolsChoice):
            return self
        allowed = self.tool_choice.allowed_tools
        tools = [tool for tool in self.tools or [] if tool.function.name in allowed.names]
        return self.model_copy(update={"tools": tools, "tool_choice": allowed.mode})

    @property
    def echoed(self) -> str:
        """The text before the answer. As in vLLM: the last message, if the answer continues its role."""
        last = self.messages[-1]
        continues_role = last.role == "assistant" or not self.add_generation_prompt
        return last.text if self.echo and continues_role else ""

    @property
    def logprobs_param(self) -> str:
        return "top_logprobs"

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def _check_named(wanted: set[str], given: list[str], param: str) -> None:
    missing = sorted(wanted.difference(given))
    if missing:
        raise InvalidRequest(f"{param}: {missing[0]!r} is not one of the tools.", param=param)
