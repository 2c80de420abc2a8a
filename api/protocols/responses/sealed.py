"""The `encrypted_content` of reasoning: its encoded text, for clients that send back nothing else.

It is no secret, as the response has the reasoning too. The embedded engine writes the same, so a conversation
may go on with either.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

_PREFIX = "berth1."


def seal(text: str) -> str:
    return _PREFIX + base64.b64encode(text.encode("utf-8", "replace")).decode()


def unseal(sealed: Any) -> str | None:
    """None for another provider's content."""
    if not isinstance(sealed, str) or not sealed.startswith(_PREFIX):
        return None
    try:
        return base64.b64decode(sealed.removeprefix(_PREFIX), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
