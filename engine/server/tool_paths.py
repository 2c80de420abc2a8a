"""Where a tool's field is, as a protocol without chat's `function` names it."""

from __future__ import annotations

import re

from engine.errors import InvalidRequest

_IN_CHATS = re.compile(r"\btools\[(\d+)\]\.function(\.parameters)?")


def without_function(error: InvalidRequest, *, parameters: str) -> InvalidRequest:
    """The same complaint, `tools[1].function.parameters` being `tools[1]` and what `parameters` says."""

    def named(found: re.Match[str]) -> str:
        return f"tools[{found[1]}]" + (f".{parameters}" if found[2] else "")

    if error.param is None or not _IN_CHATS.match(error.param):
        return error
    return type(error)(_IN_CHATS.sub(named, error.message), param=_IN_CHATS.sub(named, error.param))
