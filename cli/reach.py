"""Why a server can't be reached, and what to do about it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from cli.errors import CliError, ExitCode

WHERE = "set Berth's URL with --url or BERTH_URL"
_START = f"start it with `berth serve`, or {WHERE}"


def unreachable(url: str, exc: Exception) -> CliError:
    """The error for a failed connection."""
    reason, next_step = _reason(url, exc)
    return CliError(f"Berth can't be reached at {url}: {reason}", ExitCode.UNREACHABLE, next_step=next_step)


def not_http(url: str, exc: Exception) -> CliError:
    """The error for a server that doesn't speak HTTP, or closes the connection."""
    is_plain = urlsplit(url).scheme == "http"
    next_step = f"if it uses TLS, the URL must begin with https://; otherwise {WHERE}" if is_plain else WHERE
    message = f"the server at {url} didn't answer as Berth does ({exc})"
    return CliError(message, ExitCode.UNREACHABLE, next_step=next_step)


def _reason(url: str, exc: Exception) -> tuple[str, str]:
    """The reason, and the next step."""
    for cause in _causes(exc):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate isn't trusted ({cause.verify_message})",
                "SSL_CERT_FILE can add trusted certificates",
            )
        if isinstance(cause, ssl.SSLError):
            return "it doesn't use TLS", f"try {url.replace('https', 'http', 1)}"
        if isinstance(cause, socket.gaierror):
            return f"there is no host {urlsplit(url).hostname!r}", WHERE
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there", _START
        if isinstance(cause, TimeoutError):
            return "the host doesn't respond", WHERE
    return str(exc) or type(exc).__name__, _START


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__
