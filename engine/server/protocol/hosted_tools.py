"""Hosted tools, which only their provider's servers can run, such as a web search: ignored with a warning.

Other tools in the same request work.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidatorFunctionWrapHandler, WrapValidator

from engine.server.protocol.unknown_fields import report_ignored

_PLACEHOLDER = {"type": "function", "function": {"name": "left-out"}}


def _drop_hosted_tools(tools: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Validate all tools in place, so that errors have the client's index; then drop hosted ones."""
    if not isinstance(tools, list):
        return check(tools)
    hosted = {number: tool["type"] for number, tool in enumerate(tools) if _is_hosted(tool)}
    checked = check(
        [_PLACEHOLDER if number in hosted else tool for number, tool in enumerate(tools)] if hosted else tools
    )
    for number, kind in hosted.items():
        report_ignored(f"tools[{number}]", f"a tool of type {kind[:40]} can't run on this server")
    return [tool.with_index(number) for number, tool in enumerate(checked) if number not in hosted]


def _is_hosted(tool: Any) -> bool:
    return isinstance(tool, dict) and isinstance(tool.get("type"), str) and tool["type"] != "function"


FUNCTIONS_ONLY = WrapValidator(_drop_hosted_tools)
"""For a chat's `tools`: other types are ignored with a warning."""
