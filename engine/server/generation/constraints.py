"""The output format that a body requires, from whichever field, as one specification."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from engine.core.types import TokenConstraint
from engine.errors import InvalidRequest
from engine.server.model.reasoning import PromptReasoning
from engine.server.protocol.chat_body import ChatBody
from engine.server.protocol.conversation_body import NamedTool
from engine.server.protocol.generation_body import GenerationBody, JsonSchemaFormat
from engine.server.protocol.sampling_fields import StructuredOutputs
from engine.structured import GrammarCompiler, StructuredKind, StructuredOutput
from engine.text.parsers.tool_constraints import AnswerSchema
from engine.text.parsers.tool_format import ToolFormat

ConstraintFactory = Callable[[], TokenConstraint]
"""Creates the constraint of one sequence."""


async def make_constraint_factory(
    grammar_compiler: GrammarCompiler,
    spec: StructuredOutput | None,
    reasoning: PromptReasoning | None,
    budget: int | None,
    tenant: str = "",
) -> ConstraintFactory | None:
    """Compile the format once for all choices. None if unconstrained. Raises InvalidRequest."""
    delimiters = None if reasoning is None else reasoning.delimiters
    if budget is not None and budget >= 0 and delimiters is None:
        raise InvalidRequest(
            "thinking_token_budget needs a reasoning model: start the engine with --reasoning-parser.",
            param="thinking_token_budget",
        )
    compiled = None if spec is None else await grammar_compiler.compile(spec, tenant)
    limit = budget if budget is not None and budget >= 0 else None
    if compiled is None and limit is None:
        return None
    return lambda: grammar_compiler.constraint(compiled, delimiters, budget=limit)


def find_spec(body: GenerationBody, tool_format: ToolFormat | None = None) -> StructuredOutput | None:
    """None if unconstrained. Raises InvalidRequest if two fields conflict.

    `response_format` applies to the final answer; the model can call tools first, as with OpenAI and
    Anthropic, and a forced call takes precedence. `structured_outputs` applies to the whole output.
    """
    if not isinstance(body, ChatBody) or tool_format is None:
        return _from_format(body)
    is_forced = body.tool_choice not in (None, "auto", "none")
    if body.structured_outputs is not None and is_forced:
        raise InvalidRequest(
            "A forced tool call conflicts with structured_outputs: leave out structured_outputs, or set "
            "tool_choice to auto.",
            param="tool_choice",
        )
    output_format = _from_format(body)
    if output_format is None or is_forced:
        return _from_tools(body, tool_format)
    return (
        output_format
        if body.structured_outputs is not None
        else _format_or_calls(body, output_format, tool_format)
    )


def _format_or_calls(
    body: ChatBody, output_format: StructuredOutput, tool_format: ToolFormat
) -> StructuredOutput:
    is_schema = output_format.kind is StructuredKind.JSON_SCHEMA
    schema = json.loads(output_format.source) if is_schema else {"type": "object"}
    answer_format = AnswerSchema(schema, output_format.param, output_format.is_strict, output_format.advice)
    tag = tool_format.answer_or_calls(_tools(body), answer_format, parallel=body.parallel_tool_calls)
    return (
        output_format
        if tag is None
        else StructuredOutput(StructuredKind.TOOL_CALLS, tag, output_format.param)
    )


def _from_tools(body: ChatBody, tool_format: ToolFormat) -> StructuredOutput | None:
    choice = body.chosen_tool
    if choice == "auto" and not any(tool.function.strict for tool in body.tools or []):
        return None  # no guarantee was requested, so the model is unconstrained
    # Naming a function asks for a single call of it.
    parallel = body.parallel_tool_calls and not isinstance(body.tool_choice, NamedTool)
    tag = tool_format.call_constraint(_tools(body), choice, parallel=parallel)
    return None if tag is None else StructuredOutput(StructuredKind.TOOL_CALLS, tag, "tools")


def _tools(body: ChatBody) -> dict[str, dict[str, Any]]:
    """Tools by their path in the client's body."""
    return {f"tools[{tool.index}]": tool.model_dump(exclude_none=True) for tool in body.tools or []}


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
        advice="with strict: false, the answer follows the rest of the schema",
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
    raise InvalidRequest(
        "structured_outputs is empty: give one of json, json_object, regex, choice, grammar, structural_tag.",
        param="structured_outputs",
    )
