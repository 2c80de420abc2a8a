"""Request bodies: what we take, checked as OpenAI and vLLM document it. Knows nothing of tokens.

Fields that they know and we don't are listed in field_rules.py. A history may come from another
server, or as an SDK dumps it: it is read for what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, WithJsonSchema, model_validator

from engine.errors import InvalidRequest
from engine.server.protocol import limits
from engine.server.protocol.generation_body import (
    MINUS_ONE_AS_NONE,
    STRICT_TOOL,
    GenerationBody,
    Ignored,
    RequestBody,
    Strict,
    TokenId,
    none_as,
)
from engine.server.protocol.hosted_tools import FUNCTIONS_ONLY
from engine.server.protocol.limits import MAX_PROMPTS, MAX_TOOLS
from engine.server.protocol.provider_parts import (
    mark_unsupported_parts,
    read_assistants,
    read_part,
    read_reasoning,
)
from engine.server.protocol.size_check import is_larger

TokenIds = list[int]

_CHARS_OF_A_MESSAGE = 64  # what a template puts around it counts


def are_ids(values: list[Any]) -> bool:
    """Whether all are whole numbers from 0 on. Nothing here is done for each: there may be millions."""
    return set(map(type, values)) <= {int} and min(values, default=0) >= 0


def _check_prompt(value: Any) -> list[str | TokenIds]:
    """Any of the four shapes, as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if are_ids(value):
            return [value]
        if all(isinstance(item, str) for item in value) or all(
            isinstance(item, list) and are_ids(item) for item in value
        ):
            return value
    raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")


_TOKEN_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
        _TOKEN_IDS_SCHEMA,
        {"type": "array", "items": _TOKEN_IDS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}


class CompletionBody(GenerationBody):
    caps = limits.COMPLETION

    max_tokens: Annotated[int | None, MINUS_ONE_AS_NONE, none_as(16)] = Field(
        default=16, ge=0, description="-1 = as many as there is room for."
    )
    prompt: Annotated[list[Any], BeforeValidator(_check_prompt), WithJsonSchema(_PROMPT_SCHEMA)]
    echo: Annotated[bool, none_as(False)] = False
    logprobs: int | None = Field(default=None, ge=-1, description="-1 = of the whole vocabulary.")
    add_special_tokens: Annotated[bool, none_as(True)] = True

    @model_validator(mode="after")
    def _check_named_logprobs(self) -> CompletionBody:
        if self.logprob_token_ids is not None and self.max_tokens == 0:
            raise InvalidRequest(
                "logprob_token_ids needs max_tokens above 0: they are of the output's positions.",
                param="logprob_token_ids",
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


class FunctionCall(Strict):
    name: str
    arguments: Annotated[str | dict[str, Any], none_as("")] = ""
    parsed_arguments: Ignored = None
    provider_specific_fields: Ignored = None


def _as_function(call: Any) -> Any:
    """A call of a custom tool as one of a function: its free text is the one argument.

    What another server calls its kind of function is one all the same.
    """
    if not isinstance(call, dict):
        return call
    custom = call.get("custom") if call.get("type") == "custom" else None
    if not isinstance(custom, dict):
        kind = call.get("type")
        is_other = isinstance(kind, str) and kind != "function" and isinstance(call.get("function"), dict)
        return {**call, "type": "function"} if is_other else call
    function = {"name": custom.get("name"), "arguments": {"input": custom.get("input") or ""}}
    rest = {name: value for name, value in call.items() if name not in ("custom", "type")}
    return {**rest, "type": "function", "function": function}


class ToolCall(Strict):
    id: str | None = None
    index: Ignored = None  # some clients send back what a stream gave them
    type: Annotated[Literal["function"], none_as("function")] = "function"
    function: FunctionCall
    extra_content: Ignored = None
    provider_specific_fields: Ignored = None


class TextPart(Strict):
    type: Literal["text"]
    text: Annotated[str, none_as("")]
    cache_control: Ignored = None
    annotations: Ignored = None


class ChatMessage(Strict):
    """One turn. Clients send assistants' messages back as they got them, nulls and all."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        str | Annotated[list[Annotated[TextPart, BeforeValidator(read_part)]], Field(fail_fast=True)] | None
    ) = None
    name: str | None = None
    reasoning: Annotated[str | None, BeforeValidator(read_reasoning)] = None
    reasoning_content: Annotated[str | None, BeforeValidator(read_reasoning)] = None
    tool_calls: (
        Annotated[list[Annotated[ToolCall, BeforeValidator(_as_function)]], Field(fail_fast=True)] | None
    ) = None
    tool_call_id: str | None = None
    id: Ignored = None
    annotations: Ignored = None
    audio: Ignored = None
    cache_control: Ignored = None
    metadata: Ignored = None
    parsed: Ignored = None
    phase: Ignored = None
    provider_specific_fields: Ignored = None
    status: Ignored = None
    reasoning_details: Ignored = None
    thinking_blocks: Ignored = None

    @model_validator(mode="before")
    @classmethod
    def _read_older_words(cls, message: Any) -> Any:
        return read_assistants(_read_older_words(message)) if isinstance(message, dict) else message

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and self.role not in ("assistant", "tool"):
            raise ValueError(f"a message of role {self.role} needs content")
        return self

    @property
    def text(self) -> str:
        """The content, its parts joined; empty for none."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


def _read_older_words(message: dict[str, Any]) -> dict[str, Any]:
    """`refusal` and `function_call` of an assistant, and the role `function`, as today's fields say it."""
    if message.get("role") == "function":
        message = {**message, "role": "tool"}
    if message.keys().isdisjoint({"refusal", "function_call"}):
        return message
    kept = {name: value for name, value in message.items() if name not in ("refusal", "function_call")}
    if kept.get("content") is None:
        kept["content"] = message.get("refusal")
    if message.get("function_call") is not None and not kept.get("tool_calls"):
        kept["tool_calls"] = [{"type": "function", "function": message["function_call"]}]
    return kept


class FunctionDefinition(Strict):
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(default=None, description=STRICT_TOOL)


class Tool(Strict):
    type: Literal["function"] = "function"
    function: FunctionDefinition
    cache_control: Ignored = None
    _place: int = PrivateAttr(default=0)

    @property
    def place(self) -> int:
        """Where it stands among the tools given, of which some may be left out."""
        return self._place

    def placed(self, place: int) -> Self:
        self._place = place
        return self


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Strict):
    """Of the tools given, those that may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]

    @property
    def names(self) -> set[str]:
        return {tool.function.name for tool in self.tools}


class AllowedToolsChoice(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _parts_of(models: Sequence[Strict]) -> list[Any]:
    """The values of their fields, and of those in these."""
    parts: list[Any] = []
    for model in models:
        for value in vars(model).values():
            inner = value if isinstance(value, list) else [value]
            found = [one for one in inner if isinstance(one, Strict)]
            parts += _parts_of(found) if found else [value]
    return parts


class ConversationBody(RequestBody):
    """A conversation to be rendered by the chat template."""

    caps = limits.CONVERSATION

    messages: Annotated[
        list[ChatMessage], Field(min_length=1, fail_fast=True), BeforeValidator(mark_unsupported_parts)
    ]
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS), FUNCTIONS_ONLY] | None = None
    documents: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = Field(
        default=None, description="Handed to the template."
    )
    chat_template: str | None = Field(
        default=None, description="Taken only by a server started with --trust-request-chat-template."
    )
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: Annotated[bool, none_as(True)] = True
    continue_final_message: Annotated[bool, none_as(False)] = Field(
        default=False, description="The last message is the answer's beginning, to be gone on with."
    )
    add_special_tokens: Annotated[bool, none_as(False)] = False

    def is_larger(self, chars: int) -> bool:
        """Whether there is about so much to render, or more; many messages are, whatever is in them."""
        if len(self.messages) > chars // _CHARS_OF_A_MESSAGE:
            return True
        more = [self.documents, self.chat_template_kwargs, *_parts_of(self.tools or [])]
        return is_larger(more, chars // 2) or is_larger(_parts_of(self.messages), chars // 2)

    @model_validator(mode="after")
    def _check_continuation(self) -> ConversationBody:
        if self.continue_final_message and "add_generation_prompt" not in self.model_fields_set:
            raise InvalidRequest(
                "continue_final_message needs add_generation_prompt: false.", param="continue_final_message"
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt can't both be true.",
                param="continue_final_message",
            )
        return self


class ChatBody(GenerationBody, ConversationBody):
    caps = limits.CHAT

    echo: Annotated[bool, none_as(False)] = Field(
        default=False, description="Put the last message before the answer, if it is the assistant's."
    )
    return_prompt_text: Annotated[bool, none_as(False)] = Field(
        default=False, description="Tell the prompt as the template has made it, as `prompt_text`."
    )
    max_completion_tokens: Annotated[int | None, MINUS_ONE_AS_NONE] = Field(default=None, ge=1)
    max_tokens: Annotated[int | None, MINUS_ONE_AS_NONE] = Field(default=None, ge=1)
    logprobs: Annotated[bool, none_as(False)] = False
    top_logprobs: int | None = Field(default=None, ge=-1, description="-1 = the whole vocabulary.")
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedTool | AllowedToolsChoice, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: Annotated[bool, none_as(True)] = True
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="none = the template's enable_thinking is false, otherwise true."
    )
    include_reasoning: Annotated[bool, none_as(True)] = True
    thinking_token_budget: int | None = Field(
        default=None, ge=-1, description="At most this many tokens of reasoning; -1 = no limit."
    )

    @model_validator(mode="after")
    def _check_chat(self) -> ChatBody:
        if self.top_logprobs is not None and self.top_logprobs != 0 and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise InvalidRequest("tool_choice needs tools.", param="tool_choice")
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise InvalidRequest("Two tools have the same name.", param="tools")
        if isinstance(self.tool_choice, NamedTool):
            _check_named({self.tool_choice.function.name}, names, "tool_choice.function.name")
        if isinstance(self.tool_choice, AllowedToolsChoice):
            _check_named(self.tool_choice.allowed_tools.names, names, "tool_choice.allowed_tools.tools")
        return self

    @property
    def chosen_tool(self) -> str:
        """none, auto, required, or the name of the tool that is to be called."""
        match self.tool_choice:
            case NamedTool():
                return self.tool_choice.function.name
            case AllowedToolsChoice():
                return self.tool_choice.allowed_tools.mode
            case _:
                return self.tool_choice or "auto"

    def with_allowed_tools(self) -> ChatBody:
        """The same request, whose tools are only those that `tool_choice` allows."""
        if not isinstance(self.tool_choice, AllowedToolsChoice):
            return self
        allowed = self.tool_choice.allowed_tools
        tools = [tool for tool in self.tools or [] if tool.function.name in allowed.names]
        return self.model_copy(update={"tools": tools, "tool_choice": allowed.mode})

    @property
    def echoed(self) -> str:
        """What is put before the answer: vLLM's rule, the last message if the answer goes on in its role."""
        last = self.messages[-1]
        goes_on = last.role == "assistant" or not self.add_generation_prompt
        return last.text if self.echo and goes_on else ""

    @property
    def logprobs_param(self) -> str:
        return "top_logprobs"

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def _check_named(wanted: set[str], given: list[str], param: str) -> None:
    missing = sorted(wanted.difference(given))
    if missing:
        raise InvalidRequest(f"There is no tool {missing[0]!r} among the tools given.", param=param)


class TokenizePromptBody(RequestBody):
    caps = limits.TOKENIZE

    prompt: str
    add_special_tokens: Annotated[bool, none_as(True)] = True
    return_token_strs: Annotated[bool, none_as(False)] = False


class TokenizeChatBody(ConversationBody):
    return_token_strs: Annotated[bool, none_as(False)] = False


class DetokenizeBody(RequestBody):
    caps = limits.DETOKENIZE

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
