"""The address of a syslog server, from LOG_SYSLOG."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

_DEFAULT_PORT = 514


@dataclass(frozen=True, slots=True)
class SyslogAddress:
    """`udp://host:port`, `tcp://host:port`, or a Unix socket's path."""

    scheme: str  # "udp", "tcp" or "unix"
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> SyslogAddress:
        """Raises ValueError with the allowed forms."""
        if text.startswith("/"):
            return cls("unix", path=text)
        url = urlsplit(text)
        if url.scheme == "unix" and url.path.startswith("/"):
            return cls("unix", path=url.path)
        if url.scheme in ("udp", "tcp") and url.hostname and url.path in ("", "/"):
            return cls(url.scheme, url.hostname, _DEFAULT_PORT if url.port is None else url.port)
        raise ValueError("must be udp://host:port, tcp://host:port or the path of a Unix socket")
