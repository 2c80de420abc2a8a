"""GET /v1/responses/{name}/input_items: the input items of a response, paginated. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import InvalidRequest
from engine.server.openai.responses.items import show_item

_MAX_LIMIT = 100
_DEFAULT_LIMIT = 20


def list_items(items: Sequence[Any], query: Mapping[str, str]) -> dict[str, Any]:
    """OpenAI's list object, with `limit`, `order` (default desc) and `after`. Raises InvalidRequest."""
    limit = _limit(query.get("limit"))
    order = query.get("order") or "desc"
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order must be asc or desc, not {order[:40]!r}.", param="order")
    ordered = list(items) if order == "asc" else list(reversed(items))
    rest = ordered[_place_after(ordered, query.get("after")) :]
    page = [show_item(item) for item in rest[:limit]]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(rest) > limit,
    }


def _limit(given: str | None) -> int:
    if given is None:
        return _DEFAULT_LIMIT
    limit = int(given) if given.isascii() and given.isdigit() else 0
    if not 1 <= limit <= _MAX_LIMIT:
        raise InvalidRequest(f"limit must be 1 to {_MAX_LIMIT}, not {given[:40]!r}.", param="limit")
    return limit


def _place_after(items: Sequence[Any], item_id: str | None) -> int:
    if item_id is None:
        return 0
    for number, item in enumerate(items):
        if item.id == item_id:
            return number + 1
    raise InvalidRequest(f"after: the response has no input item {item_id[:80]!r}.", param="after")
