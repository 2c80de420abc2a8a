"""What forces tool calls to be calls: the format's marks with the tools' schemas between them.

As structural tags of xgrammar's: text in which marked parts follow a grammar.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from engine.parsers.events import Tool

_ANY_OBJECT = {"type": "object"}


def call_constraint(name: str, tools: Sequence[Tool], choice: str, *, parallel: bool) -> str | None:
    """The structural tag, as JSON, for a tool parser's format; None if that format can't be forced.

    `choice`: "required" (one call at least), "auto" (text, and calls that are proper ones), or a tool's name.
    """
    if name != "hermes":
        return None
    chosen = [tool for tool in tools if choice in ("required", "auto", tool["function"]["name"])]
    tags = [_hermes_tag(tool) for tool in chosen]
    if choice == "auto":
        form: dict[str, Any] = {
            "type": "triggered_tags",
            "triggers": ["<tool_call>"],
            "tags": tags,
            "stop_after_first": not parallel,
        }
    else:
        form = {
            "type": "tags_with_separator",
            "tags": tags,
            "separator": "\n",
            "at_least_one": True,
            "stop_after_first": not parallel,
        }
    return json.dumps({"type": "structural_tag", "format": form})


def _hermes_tag(tool: Tool) -> dict[str, Any]:
    function = tool["function"]
    begin = f'<tool_call>\n{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": '
    return {
        "type": "tag",
        "begin": begin,
        "content": {"type": "json_schema", "json_schema": function.get("parameters") or _ANY_OBJECT},
        "end": "}\n</tool_call>",
    }
