"""Which requests have answers that may be remembered, and which answers are worth it. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import date
from typing import Any

from api.http.named_model import UnclearModel, model_in_object
from api.protocols.errors import InvalidResponse, read_object
from api.protocols.sse import EventReader, EventTooLong, SseEvent

# What is at the end of an address may be something else tomorrow.
_NAMES_ADDRESS = re.compile(rb'_url"\s*:')
# Inside of strings quotes are escaped, so these match fields alone.
_HAS_ERROR = re.compile(rb'"error"\s*:\s*(?!null\b)')
_HAS_ABORT = re.compile(rb'"finish_reason"\s*:\s*"(abort|error)"')


@dataclass(frozen=True, slots=True)
class CacheableRequest:
    """A request whose answer is the same each time, as far as its model is."""

    model: str
    canonical: bytes  # the body, however it was written

    def key(self, path: bytes, query: bytes, identity: str, owner: str, today: date) -> bytes:
        """What the answer is kept under. The day is in it, as chat templates may tell it to the model.

        `owner`: for whom it is kept.
        """
        digest = hashlib.sha256()
        day = today.isoformat()
        for part in (path, query, identity.encode(), owner.encode(), day.encode(), self.canonical):
            digest.update(b"%d:" % len(part) + part)
        return digest.digest()


def read_cacheable(body: bytes) -> CacheableRequest | None:
    """The question in a request's body, None where its answer is not to be remembered."""
    if b'"temperature"' not in body and b'"seed"' not in body:
        return None  # as good as always; spares the parsing
    try:
        asked = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(asked, dict) or not _is_deterministic(asked) or _NAMES_ADDRESS.search(body):
        return None
    # A request that also changes how long a model stays, or what is kept of a chat, does more than ask.
    if asked.get("keep_alive") is not None or asked.get("store"):
        return None
    try:
        model = model_in_object(body, asked)
    except UnclearModel:
        return None  # the gateway says what is wrong
    if not isinstance(model, str):
        return None
    # Order matters within fields: a chat template writes a tool's schema out as it stands. Between the
    # fields of the body itself it doesn't.
    return CacheableRequest(model, json.dumps(sorted(asked.items()), separators=(",", ":")).encode())


def _is_deterministic(asked: dict[str, Any]) -> bool:
    temperature, seed = asked.get("temperature"), asked.get("seed")
    # JSON's true and false are no numbers, but Python's are.
    is_greedy = type(temperature) in (int, float) and temperature == 0
    return is_greedy or (type(seed) is int and seed != -1)  # by which vLLM and llama.cpp mean any


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def is_good_answer(content_type: bytes, body: bytes) -> bool:
    """Whether an answer with status 200 is one: engines write errors into streams, and may be stopped."""
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
