"""Why nothing answers at an address, and what to do about it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from cli.errors import CliError, ExitCode

WHERE = "say where Berth is with --url or BERTH_URL"
_START = f"start it with `berth serve`, or {WHERE}"


def unreachable(url: str, exc: Exception) -> CliError:
    """No connection came about."""
    reason, next_step = _reason(url, exc)
    return CliError(f"Berth can't be reached at {url}: {reason}", ExitCode.UNREACHABLE, next_step=next_step)


def not_http(url: str, exc: Exception) -> CliError:
    """Something is there, and it answers as no web server does, or hangs up."""
    is_plain = urlsplit(url).scheme == "http"
    next_step = f"if it speaks TLS, the URL begins with https://; else {WHERE}" if is_plain else WHERE
    message = f"what listens at {url} didn't answer as Berth does ({exc})"
    return CliError(message, ExitCode.UNREACHABLE, next_step=next_step)


def _reason(url: str, exc: Exception) -> tuple[str, str]:
    """What is wrong, and the next step."""
    for cause in _causes(exc):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate isn't trusted ({cause.verify_message})", "SSL_CERT_FILE names others"
        if isinstance(cause, ssl.SSLError):
            return "it doesn't speak TLS", f"try {url.replace('https', 'http', 1)}"
        if isinstance(cause, socket.gaierror):
            return f"there is no host {urlsplit(url).hostname!r}", WHERE
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there", _START
        if isinstance(cause, TimeoutError):
            return "the host doesn't answer", WHERE
    return str(exc) or type(exc).__name__, _START


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__
