"""Adapts a request's body to its engine, once the lease has decided which engine that is.

Engines of one model may serve it under different names. A body that needs no change is forwarded byte for
byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote_plus, unquote_to_bytes

from api.gateway.json_worker_pool import JsonWorkerPool
from api.http.asgi import Receive
from api.http.buffered_body import replaying
from api.http.named_model import read_object
from api.http.off_loop import off_loop
from api.proxy.upstream_request import UpstreamRequest
from instance_manager.fleet.profiles import ModelProfile

# Fields for Berth alone, not forwarded to engines.
OWN_FIELDS = frozenset({"keep_alive"})

MAX_KEPT = 4 * 2**20  # bytes of a body that is kept for a retry


class RequestBody(Protocol):
    """The part of a request's body that has been read."""

    has_more: bool  # the rest has not been read yet
    num_bytes: int  # read so far, as received
    can_repeat: bool  # whether it can be encoded again, for a retry

    async def encode_for(self, served_name: str) -> bytes:
        """The part read, for an engine that serves the model under this name."""


class JsonBody:
    """A JSON object. `profile`: the model's, with its changes to each body."""

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
        """`fields`: `raw` parsed, if it has been. `num_bytes`: of the body as received.

        `is_for_peer`: it goes to another node, so fields for Berth stay in it. `workers`: of a long body, of
        which `fields` is an outline; it is changed in a worker process.
        """
        self._own_fields = frozenset[str]() if is_for_peer else OWN_FIELDS
        self._raw = raw
        self._fields = fields
        self._profile = profile
        self._json_workers = workers
        self.num_bytes = len(raw) if num_bytes is None else num_bytes
        self.can_repeat = len(raw) <= MAX_KEPT

    async def encode_for(self, served_name: str) -> bytes:
        raw, fields = self._raw, self._fields
        if self._json_workers is not None and fields is not None:
            return await self._encode_in_worker(self._json_workers, raw, fields, served_name)
        self._fields = None  # for a retry only the bytes are kept
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
    """A form, or its beginning. `start` and `end`: the position of the model's name; None = absent."""

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
        self.can_repeat = not has_more and len(raw) <= MAX_KEPT

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
    """One request's body to be sent: `length` as announced by the client, None = chunked."""

    body: RequestBody
    length: int | None

    async def begin(self, served_name: str, request: UpstreamRequest, receive: Receive) -> Receive:
        """Encode the body for an engine; returns a `receive` for it, then for the client's next messages."""
        encoded = await self.body.encode_for(served_name)
        if not self.body.has_more:
            request.headers = request.headers.with_length(len(encoded))
        elif self.length is not None:
            num_added = len(encoded) - self.body.num_bytes
            request.headers = request.headers.with_length(self.length + num_added)
        return replaying(encoded, receive, has_more=self.body.has_more)


def has_filters(profile: ModelProfile | None) -> bool:
    """Whether this model's profile changes each request's body."""
    return profile is not None and bool(profile.set_params or profile.strip_params or profile.alias_params)


def changes_of(
    profile: ModelProfile | None, fields: Mapping[str, Any], served_name: str, own_fields: frozenset[str]
) -> tuple[frozenset[str], dict[str, Any]]:
    """The fields to remove for an engine, and those to set."""
    strip = own_fields & fields.keys()
    changes: dict[str, Any] = {}
    if fields.get("model", served_name) != served_name:
        changes["model"] = served_name
    if profile is not None:
        strip |= profile.strip_params & fields.keys()
        changes |= profile.set_params
        if profile.alias_params:
            changes |= profile.alias_params.get(str(fields.get("model")), {})
    return strip, changes


def _changed(fields: Mapping[str, Any], strip: frozenset[str], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in strip} | changes
