"""Tools that only their vendor's servers can run, such as a web search: left out, and named in a warning.

The tools beside them go on working.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidatorFunctionWrapHandler, WrapValidator

from engine.server.protocol.unknown_fields import report_ignored

_STAND_IN = {"type": "function", "function": {"name": "left-out"}}


def _keep_functions(tools: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Check all tools at their places, so that errors name the client's own index; then drop the foreign."""
    if not isinstance(tools, list):
        return check(tools)
    foreign = {number: tool["type"] for number, tool in enumerate(tools) if _is_foreign(tool)}
    checked = check(
        [_STAND_IN if number in foreign else tool for number, tool in enumerate(tools)] if foreign else tools
    )
    for number, kind in foreign.items():
        report_ignored(f"tools[{number}]", f"a tool of type {kind[:40]} can't run here")
    return [tool.placed(number) for number, tool in enumerate(checked) if number not in foreign]


def _is_foreign(tool: Any) -> bool:
    return isinstance(tool, dict) and isinstance(tool.get("type"), str) and tool["type"] != "function"


FUNCTIONS_ONLY = WrapValidator(_keep_functions)
"""For a chat's `tools`: those of other types are left out with a warning."""
