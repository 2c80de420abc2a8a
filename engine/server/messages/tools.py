"""The tools that a model is offered: those of the body, with what its system turns add and take away."""

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
class Offered:
    tool: AnthropicTool
    path: str
    """Where the client has put it: `tools[1]`."""

    @property
    def function(self) -> dict[str, Any]:
        """As chats have it."""
        function = {
            "name": self.tool.name,
            "description": _description(self.tool),
            "parameters": self.tool.input_schema,
            "strict": self.tool.strict,
        }
        return {"type": "function", "function": function}


def offered_tools(body: CountBody) -> list[Offered]:
    """Raises InvalidRequest for a tool that a turn defines wrongly."""
    known: dict[str, Offered] = {}
    for number, tool in enumerate(body.tools or []):
        if _can_run(tool, f"tools[{number}]") and isinstance(tool, AnthropicTool):
            if tool.name in known:
                raise InvalidRequest(f"Two tools have the name {tool.name!r}.", param=f"tools[{number}].name")
            known[tool.name] = Offered(tool, f"tools[{number}]")
    offered = dict(known)
    for path, change in _changes(body):
        meant = change.get("tool")
        if not isinstance(meant, dict):
            continue
        name = meant.get("name")
        if meant.get("type") == "tool_definition":
            defined = _defined(meant.get("definition"), f"{path}.tool.definition")
            if defined is None:
                continue
            name = defined.tool.name
            known[name] = defined
        if isinstance(name, str):
            offered.pop(name, None)
            if change["type"] == "tool_addition" and name in known:
                offered[name] = known[name]
    return list(offered.values())


def check_choice(body: CountBody, offered: list[Offered]) -> None:
    """Raise InvalidRequest where a tool is forced that was left out."""
    choice = body.tool_choice
    if isinstance(choice, ToolChoice) and choice.name not in [one.tool.name for one in offered]:
        given = [tool.get("name") for tool in body.tools or [] if isinstance(tool, dict)]
        problem = "can't run here" if choice.name in given else "is not among the tools given"
        raise InvalidRequest(f"The tool {choice.name[:80]!r} {problem}.", param="tool_choice.name")
    if choice is not None and choice.type == "any" and not offered:
        problem = "none of the tools given can run here" if body.tools else "no tools are given"
        raise InvalidRequest(f"A tool is to be used, but {problem}.", param="tool_choice")


def _changes(body: CountBody) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Blocks `tool_addition` and `tool_removal`, with their paths, those that a summary keeps included."""
    for number, message in enumerate(body.messages):
        for index, block in enumerate(message.blocks):
            if not isinstance(block, dict):
                continue
            path = f"messages[{number}].content[{index}]"
            kept = block.get("tool_changes") if block["type"] == "compaction" else None
            inner = [(f"{path}.tool_changes[{i}]", one) for i, one in enumerate(kept or [])]
            for where, change in [(path, block), *inner]:
                if isinstance(change, dict) and change.get("type") in ("tool_addition", "tool_removal"):
                    yield where, change


def _defined(definition: Any, path: str) -> Offered | None:
    if not isinstance(definition, dict):
        raise InvalidRequest(f"{path} should be a tool.", param=path)
    if "input_schema" not in definition and not _can_run(definition, path):
        return None
    try:
        return Offered(check(definition, AnthropicTool), path)
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error.message}", param=f"{path}.{error.param}") from error


def _can_run(tool: AnthropicTool | Mapping[str, Any], path: str) -> bool:
    if isinstance(tool, AnthropicTool):
        if tool.allowed_callers and "direct" not in tool.allowed_callers:
            report_ignored(f"{path}.allowed_callers", "code can't run here: the tool is called directly")
        return True
    kind = tool.get("type")
    if kind not in (None, "custom", "function"):
        report_ignored(path, f"a tool of type {str(kind)[:40]} can't run here")
        return False
    return True


def _description(tool: AnthropicTool) -> str | None:
    if not tool.input_examples:
        return tool.description
    examples = "\n".join(json.dumps(one, ensure_ascii=False) for one in tool.input_examples)
    return f"{tool.description or ''}\n\nExamples of its input:\n{examples}".strip()
