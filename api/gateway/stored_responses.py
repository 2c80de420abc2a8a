"""GET, DELETE and the other routes below /v1/responses/{id}, for responses that Berth has stored itself.

Berth stores those of engines without /v1/responses. All others belong to the engine that made them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote

from api.access.keys import caller_of
from api.http.asgi import Scope, Send
from api.http.dispatch import raw_path
from api.http.errors import ApiError, RequestRefused, api_error
from api.http.respond import request_id_of, send_error, send_response
from api.protocols.responses.store import OwnedResponses, ResponseStore, StoredResponse, UnknownResponse
from api.telemetry.access_log import log_answered

_PREFIX = b"/v1/responses/"

_MAX_LIMIT = 100
_DEFAULT_LIMIT = "20"

Json = Mapping[str, Any]


def owner_of(scope: Scope) -> str:
    """Whose the responses of a request are; all keys share them if tenants are not distinguished."""
    return caller_of(scope).tenant


class StoredResponses:
    """Answers requests for stored responses."""

    def __init__(self, store: ResponseStore, count: Callable[[str, int], None]) -> None:
        """`count` the method and status of each answer."""
        self._store = store
        self._count = count

    async def serve(self, scope: Scope, send: Send) -> bool:
        """Answer; False if the request is not for a response that is stored here."""
        if not raw_path(scope).startswith(_PREFIX):
            return False
        started, request_id = time.perf_counter(), request_id_of(scope)
        try:
            if (answer := self._find(scope)) is None:
                return False
            status = 200
            await _send_json(send, answer, request_id)
        except RequestRefused as refused:
            status = refused.error.status
            await send_error(send, refused.error, raw_path(scope), request_id)
        self._count(scope["method"], status)
        log_answered(scope, status, started, request_id, "stored")
        return True

    def _find(self, scope: Scope) -> Json | None:
        """The answer; None if the response is not one of this owner's here. Raises RequestRefused."""
        name, _, rest = unquote(raw_path(scope).removeprefix(_PREFIX).decode("latin-1")).partition("/")
        responses = self._store.of(owner_of(scope))
        try:
            stored = responses.get(name)
        except UnknownResponse:
            return None
        query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        return _answer(scope["method"], name, rest, query, stored, responses)


def _answer(
    method: str,
    name: str,
    rest: str,
    query: Mapping[str, str],
    stored: StoredResponse,
    responses: OwnedResponses,
) -> Json | None:
    if (method, rest) == ("GET", ""):
        if query.get("stream", "false").lower() not in ("false", "0", ""):
            raise _refusal("stream", "is not supported for stored responses; retrieve them without it")
        return stored.response
    if (method, rest) == ("DELETE", ""):
        responses.delete(name)
        return {"id": name, "object": "response", "deleted": True}
    if (method, rest) == ("GET", "input_items"):
        return _listed(stored.input_items, query)
    if (method, rest) == ("POST", "cancel"):
        raise RequestRefused(
            api_error(400, "only a background response can be cancelled", "invalid_request_error")
        )
    return None


def _listed(items: Sequence[Json], query: Mapping[str, str]) -> Json:
    """One page, the newest item first unless the client wants another order."""
    given, order = query.get("limit", _DEFAULT_LIMIT), query.get("order", "desc")
    limit = int(given) if given.isascii() and given.isdigit() else 0
    if not 1 <= limit <= _MAX_LIMIT:
        raise _refusal("limit", f"must be 1 to {_MAX_LIMIT}, not {given[:40]!r}")
    if order not in ("asc", "desc"):
        raise _refusal("order", f"must be asc or desc, not {order[:40]!r}")
    ordered = list(items) if order == "asc" else list(reversed(items))
    rest = ordered[_place_after(ordered, query.get("after")) :]
    page = rest[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0].get("id") if page else None,
        "last_id": page[-1].get("id") if page else None,
        "has_more": len(rest) > limit,
    }


def _place_after(items: Sequence[Json], item_id: str | None) -> int:
    if item_id is None:
        return 0
    for number, item in enumerate(items):
        if item.get("id") == item_id:
            return number + 1
    raise _refusal("after", f"the response has no input item {item_id[:80]!r}")


def _refusal(param: str, problem: str) -> RequestRefused:
    error: ApiError = api_error(400, f"{param} {problem}", "invalid_request_error", param=param)
    return RequestRefused(error)


async def _send_json(send: Send, answer: Json, request_id: bytes) -> None:
    body = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id),
    ]
    await send_response(send, 200, headers, body)
