"""The tools offered to the model: those of the body, with additions and removals in system turns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidRequest
from engine.server.messages.bodies import AnthropicTool, CountBody, ToolChoice
from engine.server.protocol.body_reader import check
from engine.server.protocol.unknown_fields import report_ignored


@dataclass(frozen=True, slots=True)
class LocatedTool:
    tool: AnthropicTool
    path: str
    """Its path in the body, such as `tools[1]`."""

    @property
    def function(self) -> dict[str, Any]:
        """The tool as a chat function."""
        function = {
            "name": self.tool.name,
            "description": _description(self.tool),
            "parameters": self.tool.input_schema,
            "strict": self.tool.strict,
        }
        return {"type": "function", "function": function}


def offered_tools(body: CountBody) -> list[LocatedTool]:
    """Raises InvalidRequest for an invalid tool definition in a turn."""
    known: dict[str, LocatedTool] = {}
    for number, tool in enumerate(body.tools or []):
        if _can_run(tool, f"tools[{number}]") and isinstance(tool, AnthropicTool):
            if tool.name in known:
                raise InvalidRequest(
                    f"tools[{number}].name: two tools have the name {tool.name!r}.",
                    param=f"tools[{number}].name",
                )
            known[tool.name] = LocatedTool(tool, f"tools[{number}]")
    offered = dict(known)
    for path, change in _tool_changes(body):
        target = change.get("tool")
        if not isinstance(target, dict):
            continue
        name = target.get("name")
        if target.get("type") == "tool_definition":
            defined = _read_definition(target.get("definition"), f"{path}.tool.definition")
            if defined is None:
                continue
            name = defined.tool.name
            known[name] = defined
        if isinstance(name, str):
            offered.pop(name, None)
            if change["type"] == "tool_addition" and name in known:
                offered[name] = known[name]
    return list(offered.values())


def check_choice(body: CountBody, offered: list[LocatedTool]) -> None:
    """Raise InvalidRequest if a forced tool is not available."""
    choice = body.tool_choice
    if isinstance(choice, ToolChoice) and choice.name not in [located.tool.name for located in offered]:
        given = [tool.get("name") for tool in body.tools or [] if isinstance(tool, dict)]
        problem = "can't run on this server" if choice.name in given else "is not one of the tools"
        raise InvalidRequest(f"tool_choice.name: {choice.name[:80]!r} {problem}.", param="tool_choice.name")
    if choice is not None and choice.type == "any" and not offered:
        problem = "none of the tools can run on this server" if body.tools else "there are no tools"
        raise InvalidRequest(f"tool_choice forces a tool call, but {problem}.", param="tool_choice")


def _tool_changes(body: CountBody) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """`tool_addition` and `tool_removal` blocks with their paths, including those kept by a compaction."""
    for number, message in enumerate(body.messages):
        for index, block in enumerate(message.blocks):
            if not isinstance(block, dict):
                continue
            path = f"messages[{number}].content[{index}]"
            kept = block.get("tool_changes") if block["type"] == "compaction" else None
            inner = [(f"{path}.tool_changes[{i}]", change) for i, change in enumerate(kept or [])]
            for where, change in [(path, block), *inner]:
                if isinstance(change, dict) and change.get("type") in ("tool_addition", "tool_removal"):
                    yield where, change


def _read_definition(definition: Any, path: str) -> LocatedTool | None:
    if not isinstance(definition, dict):
        raise InvalidRequest(f"{path} must be a tool definition.", param=path)
    if "input_schema" not in definition and not _can_run(definition, path):
        return None
    try:
        return LocatedTool(check(definition, AnthropicTool), path)
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error.message}", param=f"{path}.{error.param}") from error


def _can_run(tool: AnthropicTool | Mapping[str, Any], path: str) -> bool:
    if isinstance(tool, AnthropicTool):
        if tool.allowed_callers and "direct" not in tool.allowed_callers:
            report_ignored(
                f"{path}.allowed_callers", "the server can't run code: the tool is called directly"
            )
        return True
    kind = tool.get("type")
    if kind not in (None, "custom", "function"):
        report_ignored(path, f"a tool of type {str(kind)[:40]} can't run on this server")
        return False
    return True


def _description(tool: AnthropicTool) -> str | None:
    if not tool.input_examples:
        return tool.description
    examples = "\n".join(json.dumps(example, ensure_ascii=False) for example in tool.input_examples)
    return f"{tool.description or ''}\n\nExamples of its input:\n{examples}".strip()
