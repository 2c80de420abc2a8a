"""Which of an engine's routes a key for requests may ask for: those that answer one client's own request.

Everything else of an engine acts on all of its clients, on the engine itself, or is of an unknown kind, so it
takes an admin's key. Engines differ in how they read a path, and the list must hold for each of them: a path
is judged by what any of them could make of it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote_to_bytes

# `*` stands for one part of a path, a last `**` for whatever follows.
_REQUESTS = """
    /v1/chat/completions /v1/chat/completions/batch /v1/chat/completions/render /chat/completions
    /v1/completions /v1/completions/render /completions /completion /infill /apply-template
    /v1/responses /v1/responses/input_tokens /v1/responses/* /v1/responses/*/cancel
    /v1/responses/*/input_items /responses
    /v1/messages /v1/messages/count_tokens
    /v1/embeddings /embeddings /embedding /v2/embed /embed /embed_all /embed_sparse /similarity /predict
    /v1/rerank /v2/rerank /rerank /v1/reranking /reranking
    /v1/score /score /v1/classify /classify /v1/pooling /pooling /v1/moderations
    /v1/tokenize /tokenize /v1/detokenize /detokenize
    /v1/audio/transcriptions /v1/audio/translations /v1/audio/speech /v1/realtime
    /v1/images/generations /v1/images/edits /v1/images/variations
    /generate /generate_stream /v1/generate /inference/v1/generate /invocations
    /api/chat /api/generate /api/embed /api/embeddings
"""
# These are read alone, and tell what every client may know.
_READ = "/ /v1/models /v1/models/** /models /api/tags /health /ping /version /v1/health /openapi.json /docs"

_MAX_DECODED = 5  # times that a path is unescaped; one that isn't plain by then is nobody's honest request


def _parts_of(routes: str) -> frozenset[tuple[bytes, ...]]:
    return frozenset(tuple(part.encode() for part in route.split("/") if part) for route in routes.split())


_REQUEST_ROUTES, _READ_ROUTES = _parts_of(_REQUESTS), _parts_of(_READ)
_ANY, _REST = b"*", b"**"
# Methods that change nothing: by them no engine is started or woken either.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_SEPARATORS = re.compile(rb"[/\\]")
_NEVER = re.compile(rb"[\x00-\x1f\x7f?#]")


class RequestRoutes:
    """The routes of engines that keys for requests may ask for; `more` of them as the operator names them."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        """`more`: paths as an engine knows them, `*` for one part, a last `**` for all below."""
        self._requests = _REQUEST_ROUTES | _parts_of(" ".join(more).lower())
        self._knows = lru_cache(maxsize=4096)(self._judge)

    def has(self, path: bytes, method: str = "POST") -> bool:
        """Whether a path of an engine, as it came over the wire, is one of them."""
        return self._knows(path, method in SAFE_METHODS)

    def _judge(self, path: bytes, is_reading: bool) -> bool:
        parts = plain_parts(path)
        if parts is None:
            return False
        return _is_among(parts, self._requests) or (is_reading and _is_among(parts, _READ_ROUTES))


def plain_parts(path: bytes) -> tuple[bytes, ...] | None:
    """A path's parts, as an engine that forgives everything would read them; None where that can't be told.

    Unescaped, in lower case, without empty and dotted parts, parameters (`;…`) and backslashes. What climbs
    (`..`) or has characters that a path can't have is not told.
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
