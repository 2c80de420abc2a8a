"""Paths for logs and traces: without the query, and with the values of secret parameters masked.

Queries may contain prompts and keys. The same names are secret as in engine parameters and variables.
"""

from __future__ import annotations

import re
from functools import lru_cache

_END = re.compile(rb"[?#]")
_NAMED = re.compile(
    r"((?:key|token|secret|password|passwd|authorization|signature)(?:=|%3d))"
    r"(?:(?![;&/]|%3b|%26|%2f).)*",
    re.IGNORECASE | re.DOTALL,
)


@lru_cache(maxsize=1024)
def loggable(target: bytes) -> str:
    """A request's target or path, as sent by the client, for a log."""
    text = _END.split(target, maxsplit=1)[0].decode("ascii", "backslashreplace")
    return _NAMED.sub(r"\1***", text)
