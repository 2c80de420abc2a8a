"""The access log: one line per request, as text for people and with the same facts as fields for machines.

A line has a key's id, never the key, and a path without its query, which may contain prompts and keys.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from api.access.keys import ANONYMOUS, caller_of
from api.http.asgi import Scope
from api.http.dispatch import client_path
from api.http.log_paths import loggable
from api.telemetry.token_usage import TokenUsage
from api.telemetry.tracing import trace_id_of

access_logger = logging.getLogger("berth.access")


def log_answered(scope: Scope, status: int, started: float, request_id: bytes, why: str = "") -> None:
    """Log a request that was not forwarded to an engine; `why` it was not.

    `started`: time.perf_counter() on arrival.
    """
    if access_logger.isEnabledFor(logging.INFO):
        write_line(scope, status, started, request_id, note=why)


def write_line(
    scope: Scope,
    status: int,
    started: float,
    request_id: bytes,
    *,
    instance: str = "",
    model: str = "",
    first_byte_s: float | None = None,
    queued_s: float | None = None,
    usage: TokenUsage | None = None,
    note: str = "",
) -> None:
    """Write a line; the caller has checked that the logger is enabled."""
    client = scope.get("client")
    caller = caller_of(scope)
    fields = {
        "client": client[0] if client else "unknown",
        "method": scope.get("method", "WEBSOCKET"),
        "path": loggable(client_path(scope)),
        "status": status,
        "seconds": round(time.perf_counter() - started, 6),
        "request_id": request_id.decode(),
    }
    known = {"instance": instance, "model": model, "key": "" if caller is ANONYMOUS else caller.key_id}
    named = {name: value for name, value in known.items() if value}
    more: dict[str, Any] = {
        "queue_seconds": _rounded(queued_s),
        "first_byte_seconds": _rounded(first_byte_s),
        "trace_id": trace_id_of(scope),
        "note": note,
    }
    if usage is not None:
        more |= {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        more["tokens_estimated"] = usage.is_estimated or None
    access_logger.info(
        '%s "%s %s" %d %.1f ms %s%s',
        fields["client"],
        fields["method"],
        fields["path"],
        status,
        fields["seconds"] * 1000,
        fields["request_id"],
        "".join([f", {note}" if note else "", *(f", {name} {value}" for name, value in named.items())]),
        extra=fields | named | {name: value for name, value in more.items() if value not in (None, "")},
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
