"""Tools that only their vendor's servers can run, such as a web search: left out, and named in a warning.

The tools beside them go on working. Knows nothing of how a protocol writes its tools but their `type`.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from pydantic import BeforeValidator

from engine.server.unknown_fields import report_ignored


def runnable_tools(types: Set[str | None]) -> BeforeValidator:
    """For a field `tools`: only those whose `type` is one of these remain; None: those without a type.

    What isn't an object with a type stays, for the checks that follow.
    """
    return BeforeValidator(lambda tools: _keep(tools, types) if isinstance(tools, list) else tools)


def _keep(tools: list[Any], types: Set[str | None]) -> list[Any]:
    kept = []
    for number, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or kind in types or not isinstance(kind, str):
            kept.append(tool)
        else:
            report_ignored(f"tools[{number}]", f"a tool of type {kind[:40]} can't run here")
    return kept
