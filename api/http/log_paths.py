"""Paths as logs and traces may have them: without what stands behind `?`, and without values of secret names.

Prompts and keys stand in queries. A name counts as secret as it does in parameters and variables.
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
    """A request's target, or its path, as it came over the wire, to be written down."""
    text = _END.split(target, maxsplit=1)[0].decode("ascii", "backslashreplace")
    return _NAMED.sub(r"\1***", text)
