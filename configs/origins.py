"""The values of ALLOWED_ORIGINS: origins as browsers write them, and patterns.

A `*` stands for a whole part only (any origin, a port, the names below a domain, or everything after a
scheme), since `http://192.168.1.*` would also match `http://192.168.1.example.com`.
"""

from __future__ import annotations

import re

ANY_ORIGIN = "*"
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<host>\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>\*|[0-9]{1,5}))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def normalized_origin(text: str) -> str:
    """As a browser would write it: in lower case, without a default port or a trailing slash.

    Raises ValueError.
    """
    if text == ANY_ORIGIN:
        return text
    found = _ORIGIN.fullmatch(text.lower().removesuffix("/"))
    if found is None:
        raise ValueError(
            "must be `*`, or origins separated by commas, such as https://app.example.com, "
            f"https://*.example.com or http://localhost:*; {text!r} isn't an origin"
        )
    scheme, host, port = found["scheme"], found["host"], found["port"]
    return f"{scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS.get(scheme)) else f":{port}")
