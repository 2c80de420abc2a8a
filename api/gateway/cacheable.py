"""Which requests have cacheable responses, and which responses are good enough to cache. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import date
from typing import Any

from api.http.named_model import UnclearModel, model_in_object
from api.protocols.base import InvalidResponse
from api.protocols.errors import read_object
from api.protocols.sse import EventReader, EventTooLong, SseEvent

# The content behind a URL may change.
_NAMES_ADDRESS = re.compile(rb'_url"\s*:')
# Inside strings quotes are escaped, so these match fields only.
_HAS_ERROR = re.compile(rb'"error"\s*:\s*(?!null\b)')
_HAS_ABORT = re.compile(rb'"finish_reason"\s*:\s*"(abort|error)"')


@dataclass(frozen=True, slots=True)
class CacheableRequest:
    """A request whose response is the same each time from the same model."""

    model: str
    canonical: bytes  # the body, independent of formatting and order of fields

    def key(self, path: bytes, query: bytes, identity: str, owner: str, today: date) -> bytes:
        """The cache key. It includes the day, as chat templates may put it into the prompt.

        `owner`: whose cache it is.
        """
        digest = hashlib.sha256()
        day = today.isoformat()
        for part in (path, query, identity.encode(), owner.encode(), day.encode(), self.canonical):
            digest.update(b"%d:" % len(part) + part)
        return digest.digest()


def read_cacheable(body: bytes) -> CacheableRequest | None:
    """The cacheable request in a body, None if its response must not be cached."""
    if b'"temperature"' not in body and b'"seed"' not in body:
        return None  # the common case; avoids parsing
    try:
        fields = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not _is_deterministic(fields) or _NAMES_ADDRESS.search(body):
        return None
    # A request that also changes how long a model stays loaded, or stores a chat, has side effects.
    if fields.get("keep_alive") is not None or fields.get("store"):
        return None
    try:
        model = model_in_object(body, fields)
    except UnclearModel:
        return None  # the gateway reports the error
    if not isinstance(model, str):
        return None
    # The order of the body's own fields does not matter. Within a field it does: a chat template renders a
    # tool's schema as it is.
    return CacheableRequest(model, json.dumps(sorted(fields.items()), separators=(",", ":")).encode())


def _is_deterministic(fields: dict[str, Any]) -> bool:
    temperature, seed = fields.get("temperature"), fields.get("seed")
    # JSON's true and false are not numbers, but Python's are.
    is_greedy = type(temperature) in (int, float) and temperature == 0
    return is_greedy or (type(seed) is int and seed != -1)  # for vLLM and llama.cpp, -1 means a random seed


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not valid JSON")


def is_good_answer(content_type: bytes, body: bytes) -> bool:
    """Whether a response with status 200 is complete: engines put errors into streams, or abort."""
    if _HAS_ABORT.search(body):
        return False
    try:
        if content_type.lower().startswith(b"text/event-stream"):
            return _is_good_stream(body)
        return not read_object(body).get("error")
    except (EventTooLong, InvalidResponse):
        return False


def _is_good_stream(body: bytes) -> bool:
    reader = EventReader()
    events = [item.data for item in reader.feed(body) if isinstance(item, SseEvent)]
    has_error = any(read_object(data).get("error") for data in events if _HAS_ERROR.search(data))
    return reader.is_between_events and bool(events) and events[-1] == b"[DONE]" and not has_error
