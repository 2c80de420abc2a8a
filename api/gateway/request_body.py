"""A request's body as its engine is to have it: made when it is known which engine that is.

Engines of one model may know it by different names, so the body is finished with the lease. What needs no
change goes on byte for byte as it came.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote_plus, unquote_to_bytes

from api.gateway.json_worker_pool import JsonWorkerPool
from api.http.asgi import Message, Receive
from api.http.named_model import read_object
from api.http.off_loop import off_loop
from api.proxy.exchange import Request
from instance_manager.fleet.profiles import ModelProfile

# Fields that are meant for Berth alone.
OWN_FIELDS = frozenset({"keep_alive"})

_MAX_KEPT = 4 * 2**20  # bytes of a body that is kept, to be sent a second time


class RequestBody(Protocol):
    """What has been read of a request's body."""

    has_more: bool  # the rest is still to come
    num_bytes: int  # of what has been read
    can_repeat: bool  # whether it can be made again

    async def encode_for(self, served_name: str) -> bytes:
        """What has been read, for an engine that knows the model by this name."""


class JsonBody:
    """A JSON object. `profile`: what is changed in each request's body for its model."""

    has_more = False

    def __init__(
        self,
        raw: bytes,
        fields: dict[str, Any] | None,
        profile: ModelProfile | None,
        *,
        num_bytes: int | None = None,
        is_for_peer: bool = False,
        workers: JsonWorkerPool | None = None,
    ) -> None:
        """`fields`: what `raw` says, if that has been read. `num_bytes`: of the body as it came.

        `is_for_peer`: it goes to another Berth, so what is Berth's stays in it. `workers`: of a long body,
        of which `fields` are an outline; it is changed elsewhere.
        """
        self._own_fields = frozenset[str]() if is_for_peer else OWN_FIELDS
        self._raw = raw
        self._fields = fields
        self._profile = profile
        self._json_workers = workers
        self.num_bytes = len(raw) if num_bytes is None else num_bytes
        self.can_repeat = len(raw) <= _MAX_KEPT

    async def encode_for(self, served_name: str) -> bytes:
        raw, fields = self._raw, self._fields
        if self._json_workers is not None and fields is not None:
            return await self._encode_in_worker(self._json_workers, raw, fields, served_name)
        self._fields = None  # the bytes are kept for another time, and what was read of them is not
        if not self.can_repeat:
            self._raw = b""

        def make() -> bytes:
            read = read_object(raw) if fields is None else fields
            strip, changes = changes_of(self._profile, read, served_name, self._own_fields)
            return json.dumps(_changed(read, strip, changes)).encode() if strip or changes else raw

        return await off_loop(len(raw), make)

    async def _encode_in_worker(
        self, workers: JsonWorkerPool, raw: bytes, outline: dict[str, Any], served_name: str
    ) -> bytes:
        if not self.can_repeat:
            self._raw = b""
        strip, changes = changes_of(self._profile, outline, served_name, self._own_fields)
        return await workers.change(raw, strip, changes) if strip or changes else raw


class FormBody:
    """A form, or its beginning. `start` and `end`: where the model's name is in it; None = nowhere."""

    def __init__(
        self,
        raw: bytes,
        start: int | None = None,
        end: int = 0,
        *,
        has_more: bool,
        is_url_encoded: bool = False,
    ) -> None:
        self._raw = raw
        self._start = start
        self._end = end
        self._is_url_encoded = is_url_encoded
        self.has_more = has_more
        self.num_bytes = len(raw)
        self.can_repeat = not has_more and len(raw) <= _MAX_KEPT

    async def encode_for(self, served_name: str) -> bytes:
        raw = self._raw
        if not self.can_repeat:
            self._raw = b""
        if self._is_url_encoded:
            return b"&".join(_renamed(pair, served_name) for pair in raw.split(b"&"))
        if self._start is None:
            return raw
        return raw[: self._start] + served_name.encode() + raw[self._end :]


def _renamed(pair: bytes, served_name: str) -> bytes:
    key, _, _ = pair.partition(b"=")
    if unquote_to_bytes(key.replace(b"+", b" ")) != b"model":
        return pair
    return key + b"=" + quote_plus(served_name).encode()


@dataclass(slots=True)
class OutgoingBody:
    """One request's body on its way: `length` is what the client has announced, None = it comes in chunks."""

    body: RequestBody
    length: int | None

    async def begin(self, served_name: str, request: Request, receive: Receive) -> Receive:
        """Finish the body for an engine; a `receive` that gives it, then what the client still does."""
        made = await self.body.encode_for(served_name)
        if not self.body.has_more:
            request.headers = request.headers.with_length(len(made))
        elif self.length is not None:
            num_added = len(made) - self.body.num_bytes
            request.headers = request.headers.with_length(self.length + num_added)
        return giving(made, receive, has_more=self.body.has_more)


def giving(body: bytes, receive: Receive, *, has_more: bool) -> Receive:
    """A `receive` that gives these bytes once, then what the client still sends or does."""
    is_given = False

    async def give() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": has_more}

    return give


def has_filters(profile: ModelProfile | None) -> bool:
    """Whether each request's body is changed for this model."""
    return profile is not None and bool(profile.set_params or profile.strip_params)


def changes_of(
    profile: ModelProfile | None, fields: Mapping[str, Any], served_name: str, own_fields: frozenset[str]
) -> tuple[frozenset[str], dict[str, Any]]:
    """The fields that an engine is not to have, and those that it is to have so."""
    strip = own_fields & fields.keys()
    changes: dict[str, Any] = {}
    if fields.get("model", served_name) != served_name:
        changes["model"] = served_name
    if profile is not None:
        strip |= profile.strip_params & fields.keys()
        changes |= profile.set_params
    return strip, changes


def _changed(fields: Mapping[str, Any], strip: frozenset[str], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in strip} | changes
