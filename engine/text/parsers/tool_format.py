"""What the server knows of one format of tool calls. Each parser's file describes its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engine.text.parsers.choice import NamedFormat
from engine.text.parsers.events import Tool, ToolParser
from engine.text.parsers.tool_constraints import AnswerSchema, TagFormat, ToolSchema

Constraint: TypeAlias = Callable[[Sequence[ToolSchema], bool, bool], TagFormat | None]
"""(tools, is_auto, parallel) → calls of these tools in the format; None if it can't be enforced.

`is_auto`: text is allowed as well. `parallel`: several calls are.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat(NamedFormat):
    parser: Callable[[Sequence[Tool]], ToolParser]  # for one output; `tools` are the request's
    constraint: Constraint | None = None
    needs_special_tokens: bool = False  # the parser reads delimiters that are special tokens

    def call_constraint(self, tools: Mapping[str, Tool], choice: str, *, parallel: bool) -> str | None:
        """The structural tag, as JSON; None if the format can't be enforced.

        `tools`: by their paths, for errors. `choice`: "required" (at least one call), "auto" (text, and valid
        calls), or a tool's name.
        Raises InvalidRequest for a tool that can't be written in this format.
        """
        if self.constraint is None:
            return None
        wanted = [
            ToolSchema.of(tool, f"{path}.function", is_forced=choice != "auto")
            for path, tool in tools.items()
            if choice in ("required", "auto", tool["function"]["name"])
        ]
        return _as_tag(self.constraint(wanted, choice == "auto", parallel))

    def answer_or_calls(
        self, tools: Mapping[str, Tool], answer: AnswerSchema, *, parallel: bool
    ) -> str | None:
        """The same for an answer that follows a schema, if the model may call tools instead."""
        if self.constraint is None:
            return None
        wanted = [ToolSchema.of(tool, f"{path}.function", is_forced=False) for path, tool in tools.items()]
        calls = self.constraint([tool.as_promised for tool in wanted], False, parallel)
        return _as_tag(calls and {"type": "or", "elements": [answer.content, calls]})


def _as_tag(form: TagFormat | None) -> str | None:
    return None if form is None else json.dumps({"type": "structural_tag", "format": form})
