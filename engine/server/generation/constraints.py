"""What a body says its output must be, whichever field says it, as one specification."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from engine.core.types import TokenConstraint
from engine.errors import InvalidRequest
from engine.server.model.reasoning import PromptReasoning
from engine.server.protocol.chat_body import ChatBody
from engine.server.protocol.conversation_body import NamedTool
from engine.server.protocol.generation_body import GenerationBody, JsonSchemaFormat, StructuredOutputs
from engine.structured import StructuredKind, StructuredOutput, Structurer
from engine.text.parsers.tools import Answer, answer_or_calls, call_constraint

ConstraintFactory = Callable[[], TokenConstraint]
"""Makes the constraint of one sequence."""


async def make_constraint_factory(
    structurer: Structurer,
    spec: StructuredOutput | None,
    thinking: PromptReasoning | None,
    budget: int | None,
    tenant: str = "",
) -> ConstraintFactory | None:
    """Compile what is asked for, once for all choices; None where anything goes. Raises InvalidRequest."""
    marks = None if thinking is None else thinking.marks
    if budget is not None and budget >= 0 and marks is None:
        raise InvalidRequest(
            "thinking_token_budget needs a model that thinks: this server has no --reasoning-parser.",
            param="thinking_token_budget",
        )
    compiled = None if spec is None else await structurer.compile(spec, tenant)
    bounded = budget if budget is not None and budget >= 0 else None
    if compiled is None and bounded is None:
        return None
    return lambda: structurer.constraint(compiled, marks, budget=bounded)


def find_spec(body: GenerationBody, tool_parser: str | None = None) -> StructuredOutput | None:
    """None where anything goes. Raises InvalidRequest where two fields ask for different things.

    A `response_format` is the answer's, which the model may put off to call tools, as with OpenAI and
    Anthropic: a forced call comes before it. `structured_outputs` is that of all that the model says.
    """
    if not isinstance(body, ChatBody) or tool_parser is None:
        return _from_format(body)
    is_forced = body.tool_choice not in (None, "auto", "none")
    if body.structured_outputs is not None and is_forced:
        raise InvalidRequest(
            "A forced tool call can't follow another format: leave out structured_outputs, or set "
            "tool_choice to auto.",
            param="tool_choice",
        )
    answer = _from_format(body)
    if answer is None or is_forced:
        return _from_tools(body, tool_parser)
    return answer if body.structured_outputs is not None else _answer_or_calls(body, answer, tool_parser)


def _answer_or_calls(body: ChatBody, answer: StructuredOutput, tool_parser: str) -> StructuredOutput:
    is_schema = answer.kind is StructuredKind.JSON_SCHEMA
    schema = json.loads(answer.source) if is_schema else {"type": "object"}
    said = Answer(schema, answer.param, answer.is_strict, answer.advice)
    tag = answer_or_calls(tool_parser, _tools(body), said, parallel=body.parallel_tool_calls)
    return answer if tag is None else StructuredOutput(StructuredKind.TOOL_CALLS, tag, answer.param)


def _from_tools(body: ChatBody, tool_parser: str) -> StructuredOutput | None:
    choice = body.chosen_tool
    if choice == "auto" and not any(tool.function.strict for tool in body.tools or []):
        return None  # nothing is promised, so the model's own way is left to it
    # Who names a function means one call of it.
    parallel = body.parallel_tool_calls and not isinstance(body.tool_choice, NamedTool)
    tag = call_constraint(tool_parser, _tools(body), choice, parallel=parallel)
    return None if tag is None else StructuredOutput(StructuredKind.TOOL_CALLS, tag, "tools")


def _tools(body: ChatBody) -> dict[str, dict[str, Any]]:
    """By the client's own path."""
    return {f"tools[{tool.place}]": tool.model_dump(exclude_none=True) for tool in body.tools or []}


def _from_format(body: GenerationBody) -> StructuredOutput | None:
    if body.structured_outputs is not None:
        return _from_structured_outputs(body.structured_outputs)
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if not isinstance(form, JsonSchemaFormat):
        return StructuredOutput(StructuredKind.JSON_OBJECT, "", "response_format")
    param = "response_format.json_schema.schema"
    schema = form.json_schema.schema_
    if schema is None:
        raise InvalidRequest(f"{param} is required.", param=param)
    return StructuredOutput(
        StructuredKind.JSON_SCHEMA,
        json.dumps(schema),
        param,
        is_strict=form.json_schema.strict is not False,
        advice="with strict: false, the answer follows all else that the schema says",
    )


def _from_structured_outputs(given: StructuredOutputs) -> StructuredOutput:
    if given.json_ is not None:
        text = given.json_ if isinstance(given.json_, str) else json.dumps(given.json_)
        return StructuredOutput(StructuredKind.JSON_SCHEMA, text, "structured_outputs.json")
    if given.json_object:
        return StructuredOutput(StructuredKind.JSON_OBJECT, "", "structured_outputs.json_object")
    if given.choice is not None:
        return StructuredOutput(
            StructuredKind.CHOICE, json.dumps(given.choice, ensure_ascii=False), "structured_outputs.choice"
        )
    for kind in (StructuredKind.REGEX, StructuredKind.GRAMMAR, StructuredKind.STRUCTURAL_TAG):
        source = getattr(given, kind.value)
        if source is not None:
            return StructuredOutput(kind, source, f"structured_outputs.{kind.value}")
    raise InvalidRequest("structured_outputs is empty.", param="structured_outputs")
