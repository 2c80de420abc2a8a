"""The `encrypted_content` of reasoning: its encoded text, for clients that send back nothing else.

It is not secret, since the response also contains the reasoning. A prefix distinguishes it from other
providers' content.
"""

from __future__ import annotations

import base64
import binascii

_PREFIX = "berth1."


def seal(text: str) -> str:
    return _PREFIX + base64.b64encode(text.encode()).decode()


def unseal(sealed: str) -> str | None:
    """None for another provider's content."""
    if not sealed.startswith(_PREFIX):
        return None
    try:
        return base64.b64decode(sealed.removeprefix(_PREFIX), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
