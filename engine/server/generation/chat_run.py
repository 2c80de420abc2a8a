"""Prepares a chat from its validated body: prompt, parsers, constraint, generation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidRequest
from engine.server.generation.chat_events import ChatEvent, ChoiceReader
from engine.server.generation.constraints import find_spec
from engine.server.generation.generation import Choice, ChoiceDelta, Generation
from engine.server.generation.sampling_params import TokenLimit
from engine.server.generation.service import GenerationService, Prompt
from engine.server.http.large_work import LARGE_BYTES
from engine.server.model.model_service import ModelService
from engine.server.model.reasoning import PromptReasoning, ReasoningState
from engine.server.model.truncation import Truncation
from engine.server.protocol.chat_body import ChatBody
from engine.server.protocol.conversation_body import ConversationBody
from engine.text.parsers.events import ToolParser
from engine.text.parsers.reasoning import ReasoningParser
from engine.text.parsers.tool_format import ToolFormat


@dataclass(frozen=True, slots=True)
class ChatRun:
    """A chat that runs once its generation is entered."""

    generation: Generation
    choices: list[Choice]
    readers: dict[int, ChoiceReader]  # by the choice's index
    is_plain_content: bool  # all text is content, so readers are not needed
    prompt_text: str

    def read(self, deltas: Iterable[ChoiceDelta]) -> list[ChatEvent]:
        """The events of one step."""
        return [event for delta in deltas for event in self.readers[delta.choice.index].read(delta)]


async def prepare_chat(service: GenerationService, body: ChatBody, *, first_index: int = 0) -> ChatRun:
    """Check the rest of the body, render and encode the prompt, create choices and their readers.

    Raises InvalidRequest and QueueFull. `first_index`: the index of its first choice.
    """
    model = service.model
    model.check_name(body.model)
    # OpenAI: with "none" the model calls no tool, so it isn't shown any.
    has_tools = bool(body.tools) and body.tool_choice != "none"
    tool_format = model.tool_format if has_tools else None
    if has_tools and tool_format is None and body.tool_choice not in (None, "auto"):
        raise InvalidRequest(
            "tool_choice needs a tool parser, and none was detected for this model: start the engine "
            "with --tool-call-parser.",
            param="tool_choice",
        )
    text = await render_conversation(service, body, with_tools=has_tools)
    max_model_len = service.engine.max_model_len
    limit = _token_limit(service, body)
    token_ids = await service.encode(
        text,
        add_special_tokens=body.add_special_tokens,
        truncation=Truncation.of(body, max_model_len, needs_output=True),
        param="messages",
        output=limit.requested or 1,
    )
    max_tokens = limit.resolve(max_model_len, num_prompt_tokens=len(token_ids), min_tokens=body.min_tokens)
    reasoning = PromptReasoning.of(model, text)
    spec = find_spec(body, tool_format)
    if spec is not None and reasoning is not None and reasoning.state is ReasoningState.POSSIBLE:
        reasoning = await _detect_disabled_reasoning(service, body, reasoning, text, with_tools=has_tools)
    make_constraint = await service.constraint_for(spec, reasoning, budget=body.thinking_token_budget)
    show_special = tool_format is not None and tool_format.needs_special_tokens
    generation, choices = await service.create_generation(
        body,
        [Prompt(token_ids, max_tokens)],
        make_constraint=make_constraint,
        skip_special_tokens=body.skip_special_tokens and not show_special,
        first_index=first_index,
    )
    make_reader = _reader_factory(body, reasoning, tool_format)
    return ChatRun(
        generation,
        choices,
        {choice.index: make_reader(choice.index) for choice in choices},
        is_plain_content=tool_format is None and reasoning is None and not body.echoed,
        prompt_text=text,
    )


async def _detect_disabled_reasoning(
    service: GenerationService, body: ChatBody, reasoning: PromptReasoning, text: str, *, with_tools: bool
) -> PromptReasoning:
    """Detect whether the template has disabled reasoning in the prompt.

    If it has, reasoning must not be allowed: models would use it to get around the constraint.
    """
    off, on = [
        await render_conversation(service, body, with_tools=with_tools, enable_thinking=switch)
        for switch in (False, True)
    ]
    return reasoning.disabled() if text == off != on else reasoning


def _reader_factory(
    body: ChatBody, reasoning: PromptReasoning | None, tool_format: ToolFormat | None
) -> Callable[[int], ChoiceReader]:
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]

    def make(index: int) -> ChoiceReader:
        parser: ToolParser | None = None if tool_format is None else tool_format.parser(tools)
        reasoning_parser: ReasoningParser | None = None if reasoning is None else reasoning.make_parser()
        return ChoiceReader(
            index,
            reasoning=reasoning_parser,
            counter=None if reasoning is None else reasoning.make_counter(),
            tools=parser,
            shows_reasoning=body.include_reasoning,
            allows_parallel_calls=body.parallel_tool_calls,
            echo=body.echoed,
        )

    return make


async def encode_conversation(service: ModelService, body: ConversationBody) -> list[int]:
    """The tokens of the rendered prompt, for counting: they need not fit the context."""
    text = await render_conversation(service, body, with_tools=True)
    return await service.encode(text, add_special_tokens=body.add_special_tokens, output=None)


async def render_conversation(
    service: ModelService, body: ConversationBody, *, with_tools: bool, enable_thinking: bool | None = None
) -> str:
    """The prompt's text; long conversations are rendered in a thread.

    `enable_thinking` overrides the body's value.
    """
    variables = {**_reasoning_variables(body), **(body.chat_template_kwargs or {})}
    if enable_thinking is not None:
        variables["enable_thinking"] = enable_thinking
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []] if with_tools else []
    template = service.model.template_for(body.chat_template)

    def render() -> str:
        return template.render(
            [message.model_dump(exclude_none=True) for message in body.messages],
            tools=tools or None,
            documents=body.documents,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            variables=variables,
        )

    return await service.large_work.run(render) if body.is_larger(LARGE_BYTES // 4) else render()


def _reasoning_variables(body: ConversationBody) -> dict[str, Any]:
    """`reasoning_effort` as template variables: the effort itself, and a switch for other templates."""
    effort = body.reasoning_effort if isinstance(body, ChatBody) else None
    return {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}


def _token_limit(service: GenerationService, body: ChatBody) -> TokenLimit:
    if body.max_completion_tokens is not None:
        return TokenLimit(body.max_completion_tokens, "max_completion_tokens", "messages", is_cap=True)
    requested = body.max_tokens
    default = service.model.defaults.get("max_new_tokens")
    if requested is None and default is not None:
        requested = max(body.min_tokens, min(int(default), service.engine.max_model_len))
    return TokenLimit(requested, "max_tokens", "messages", is_cap=True)
