"""The engines' routes that request keys may use: those that serve one client's own request.

Every other route affects all clients or the engine itself, or is unknown: it requires an admin key. Engines
parse paths differently, and the list must be safe for all of them: a path is checked in its most
permissive reading. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from instance_manager.backends import BACKENDS

# Of all OpenAI-compatible servers; a kind's own are in its back end. `*` matches one segment of a path, a
# final `**` everything below.
_REQUESTS = """
    /v1/chat/completions /chat/completions /v1/completions /completions
    /v1/responses /v1/responses/input_tokens /v1/responses/* /v1/responses/*/cancel
    /v1/responses/*/input_items /responses
    /v1/messages /v1/messages/count_tokens
    /v1/embeddings /embeddings /v1/rerank /rerank /v1/moderations
    /v1/audio/transcriptions /v1/audio/translations /v1/audio/speech /v1/realtime
    /v1/images/generations /v1/images/edits /v1/images/variations
"""
# Read-only routes with information for every client.
_READ = "/ /v1/models /v1/models/** /models /health /v1/health /openapi.json /docs"

_MAX_DECODED = 5  # times that a path is unescaped; no legitimate client escapes one more often


def _parts_of(routes: str) -> frozenset[tuple[bytes, ...]]:
    return frozenset(tuple(part.encode() for part in route.split("/") if part) for route in routes.split())


_ANY, _REST = b"*", b"**"
# Safe methods (RFC 9110): they start and wake no engine either.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_SEPARATORS = re.compile(rb"[/\\]")
_NEVER = re.compile(rb"[\x00-\x1f\x7f?#]")


class RequestRoutes:
    """The routes of all engine kinds that request keys may use, including `more` added by the operator."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        """`more`: an engine's paths, with `*` for one segment and a final `**` for everything below."""
        kinds = [backend.routes for backend in BACKENDS.values()]
        self._more = _parts_of(" ".join(more).lower())
        self._control = _parts_of(" ".join(kind.control for kind in kinds))
        self._requests = _parts_of(" ".join([_REQUESTS, *(kind.requests for kind in kinds)]))
        self._reads = _parts_of(" ".join([_READ, *(kind.reads for kind in kinds)]))
        self._allows = lru_cache(maxsize=4096)(self._is_allowed)

    def has(self, path: bytes, method: str = "POST") -> bool:
        """Whether an engine's path, as sent by the client, is one of them."""
        return self._allows(path, method in SAFE_METHODS)

    def _is_allowed(self, path: bytes, is_reading: bool) -> bool:
        parts = plain_parts(path)
        if parts is None:
            return False
        if _is_among(parts, self._more):
            return True
        allowed = self._requests | self._reads if is_reading else self._requests
        return _is_among(parts, allowed) and not _is_among(parts, self._control)


def plain_parts(path: bytes) -> tuple[bytes, ...] | None:
    """A path's segments as the most permissive engine would read them; None if that is unclear.

    Unescaped, in lower case, without empty and `.` segments, parameters (`;…`) and backslashes. A path with
    `..` or with characters that are invalid in a path is unclear.
    """
    for _ in range(_MAX_DECODED):
        plain = unquote_to_bytes(path)
        if plain == path:
            break
        path = plain
    else:
        return None
    if _NEVER.search(path):
        return None
    parts = [part.partition(b";")[0] for part in _SEPARATORS.split(path.lower())]
    if b".." in parts:
        return None
    return tuple(part for part in parts if part not in (b"", b"."))


def _is_among(parts: tuple[bytes, ...], routes: frozenset[tuple[bytes, ...]]) -> bool:
    return parts in routes or any(_fits(parts, route) for route in routes if _ANY in route or _REST in route)


def _fits(parts: tuple[bytes, ...], route: tuple[bytes, ...]) -> bool:
    if route[-1] == _REST:
        route, parts = route[:-1], parts[: len(route) - 1]
    return len(parts) == len(route) and all(b in (a, _ANY) for a, b in zip(parts, route, strict=True))
