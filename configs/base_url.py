"""URLs of other nodes, as ADVERTISE_URL has them."""

from __future__ import annotations

from urllib.parse import urlsplit


def is_base_url(url: str) -> bool:
    """Whether it is `http://HOST:PORT` without a path."""
    try:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        address = host if parts.port is None else f"{host}:{parts.port}"
    except ValueError:
        return False
    return host is not None and url.rstrip("/").lower() == f"http://{address}"
