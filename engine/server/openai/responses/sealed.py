"""What stands for `encrypted_content` of a thought: its text, for clients that keep it and send nothing else.

It is no secret, as the thought itself is in the answer, too. A mark tells it from another provider's.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "berth1."


def seal(text: str) -> str:
    return _MARK + base64.b64encode(text.encode()).decode()


def unseal(sealed: str) -> str | None:
    """None for another provider's."""
    if not sealed.startswith(_MARK):
        return None
    try:
        return base64.b64decode(sealed.removeprefix(_MARK), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
