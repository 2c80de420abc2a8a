"""The one door: `/v1/*` and its unversioned kin, routed to a model by the name in the body.

Looks at a body as little as it must, once; changes it only where the model's profile or an alias asks for it;
then hands the request to the data plane, with a lease of whichever replica has room.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from pydantic_core import from_json

from api.asgi import Message, Receive, Scope, Send
from api.body_peek import Peeked, peek
from api.dispatch import raw_path
from api.errors import ApiError, api_error, error_for
from api.headers import find_header, sane_request_id
from api.keep_alive import idle_timeout_s
from api.leases import ClientGone, Lease
from api.off_loop import off_loop
from api.patient_stream import PatientStream
from api.proxy import DataPlane
from instance_manager.errors import InstanceNotFound, ManagerError
from instance_manager.fleet import Fleet
from instance_manager.models import Model
from instance_manager.types import InstanceState

VERSIONED = b"/v1/"
# Paths without a version: to what the engine knows them as.
UNVERSIONED: Mapping[bytes, bytes] = {
    b"/chat/completions": b"/v1/chat/completions",
    b"/completions": b"/v1/completions",
    b"/embeddings": b"/v1/embeddings",
    b"/responses": b"/v1/responses",
    b"/rerank": b"/rerank",
    b"/v2/rerank": b"/v2/rerank",
    b"/v2/embed": b"/v2/embed",
    b"/score": b"/score",
    b"/pooling": b"/pooling",
    b"/classify": b"/classify",
    b"/tokenize": b"/tokenize",
    b"/detokenize": b"/detokenize",
}
_MAX_BODY_BYTES = 256 * 2**20
_MAX_UPLOAD_PEEK = 64 * 1024  # of a multipart body, within which the model's name has to come
_MAX_KEPT = 4 * 2**20  # bytes of a body that is kept, to be sent a second time
_NOTICE_S = 2.0  # within which the end of an engine is noticed
_AFFINITY_CHARS = 512
_MULTIPART_MODEL = re.compile(rb'name="?model"?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n')


_NO_CACHE = (b"cache-control", b"no-cache")


class _Refused(Exception):
    def __init__(self, error: ApiError) -> None:
        self.error = error


@dataclass(slots=True)
class _Asked:
    """What a request asks for."""

    model: Model
    receive: Receive
    body: bytes | None  # None: as it comes
    again: Callable[[], Receive] | None = None  # where the request may be sent a second time
    is_stream: bool = False
    priority: int = 0
    affinity: bytes = b""
    idle_timeout_s: float | None = None


class _ModelLeases:
    """The data plane's view of one request's model; where it asks for an instance it gets any replica."""

    def __init__(self, fleet: Fleet, asked: _Asked) -> None:
        self._fleet = fleet
        self._asked = asked

    def try_lease(self, _: str) -> Lease | None:
        lease = self._fleet.try_lease(self._asked.model, self._asked.affinity)
        return None if lease is None else self._granted(lease)

    async def wait_for_lease(self, _: str) -> Lease:
        return self._granted(await self._fleet.wait_for_lease(self._asked.model, self._asked.priority))

    async def again(self, lease: Lease) -> Receive | None:
        """Once more, once, if the engine has died; not where it was stopped and no other serves the model."""
        asked = self._asked
        again, asked.again = asked.again, None
        if again is None:
            return None
        try:
            instance = self._fleet.manager.get(lease.instance_id)
            async with asyncio.timeout(_NOTICE_S):  # until the supervisor has seen the end too
                while instance.gate.is_open and instance.spawns == lease.endpoint.generation:
                    await instance.changed()
        except InstanceNotFound:
            return again() if asked.model.awake else None
        except TimeoutError:
            return None
        has_died = instance.state is InstanceState.FAILED or instance.spawns != lease.endpoint.generation
        return again() if has_died or asked.model.awake else None

    def _granted(self, lease: Lease) -> Lease:
        if self._asked.idle_timeout_s is not None:
            self._fleet.manager.patch(lease.instance_id, timeout_s=self._asked.idle_timeout_s)
        return lease


class Gateway:
    """An ASGI application for http scopes; `is_for` says which paths are its own."""

    def __init__(self, fleet: Fleet, data_plane: DataPlane, *, comment_interval_s: float = 10.0) -> None:
        """`comment_interval_s`: how long a stream may wait in silence; 0 = as long as it takes."""
        self._fleet = fleet
        self._data_plane = data_plane
        self._comment_interval_s = comment_interval_s

    @staticmethod
    def is_for(scope: Scope) -> bool:
        """All under /v1/ but the list of models, which is Berth's own to tell."""
        path = raw_path(scope)
        if path.startswith(VERSIONED):
            return not (path == b"/v1/models" or path.startswith(b"/v1/models/"))
        return path in UNVERSIONED

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            asked = await self._read(scope, receive)
        except ClientGone:
            return
        except _Refused as refused:
            await _send_error(scope, send, refused.error)
            return
        except ManagerError as error:
            await _send_error(scope, send, error_for(error))
            return
        if asked.body is not None:
            scope = _with_length(scope, len(asked.body))
        path = raw_path(scope)
        target = UNVERSIONED.get(path, path)
        if query := scope["query_string"]:
            target += b"?" + query
        leases = _ModelLeases(self._fleet, asked)
        stream = None
        if asked.is_stream and self._comment_interval_s:
            request_id = (b"x-request-id", _request_id(scope))
            scope = {**scope, "headers": [*scope["headers"], request_id]}
            stream = PatientStream(send, self._comment_interval_s, [request_id, _NO_CACHE])
        try:
            await self._data_plane.forward(
                scope,
                asked.receive,
                stream.send if stream else send,
                asked.model.name,
                target,
                leases=leases,
                again=leases.again,
            )
        finally:
            if stream is not None:
                await stream.close()

    async def _read(self, scope: Scope, receive: Receive) -> _Asked:
        """Find the model. Raises _Refused, ManagerError or ClientGone."""
        content_type = find_header(scope["headers"], b"content-type").lower()
        if scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
            return _Asked(self._named_in_query(scope), receive, None)
        if content_type.startswith(b"multipart/"):
            return await self._read_upload(scope, receive)
        peeked = await peek(receive, _MAX_BODY_BYTES)
        if peeked.body is None:
            message = f"the body is longer than the {_MAX_BODY_BYTES >> 20} MiB that are taken"
            raise _Refused(api_error(413, message, "invalid_request_error", code="body_too_large"))
        body = await off_loop(len(peeked.body), lambda: _parse(peeked.body or b""))
        name = body.get("model")
        if name is None:
            model = self._named_in_query(scope)
        elif isinstance(name, str):
            model = self._fleet.find(name)
        else:
            raise _Refused(_wrong_field("model", f"must be a string, not {name!r}"))
        return await self._asked(model, body, peeked)

    async def _asked(self, model: Model, body: dict[str, Any], peeked: Peeked) -> _Asked:
        priority = body.get("priority")
        try:
            timeout_s = idle_timeout_s(body["keep_alive"]) if "keep_alive" in body else None
        except ValueError as error:
            raise _Refused(_wrong_field("keep_alive", str(error))) from None
        asked = _Asked(
            model,
            peeked.replay,
            None,
            is_stream=body.get("stream") is True,
            priority=priority if isinstance(priority, int) else 0,
            affinity=_affinity(body),
            idle_timeout_s=timeout_s,
        )
        changed = changed_body(model, body)
        if changed is not None:
            raw = await off_loop(len(peeked.body or b""), lambda: json.dumps(changed).encode())
            asked.body, asked.receive = raw, _replaying(raw, peeked.receive)
        whole = asked.body or peeked.body
        if whole is not None and len(whole) <= _MAX_KEPT:
            asked.again = lambda: _replaying(whole, peeked.receive)
        return asked

    async def _read_upload(self, scope: Scope, receive: Receive) -> _Asked:
        """Of a form only its beginning is looked at; it is forwarded as it comes."""
        peeked = await peek(receive, _MAX_UPLOAD_PEEK)
        begun = b"".join(message.get("body", b"") for message in peeked.messages)
        found = _MULTIPART_MODEL.search(begun)
        model = (
            self._fleet.find(found[1].decode("utf-8", "replace")) if found else self._named_in_query(scope)
        )
        return _Asked(model, peeked.replay, None)

    def _named_in_query(self, scope: Scope) -> Model:
        """`?model=`; without it the only model that runs. Raises _Refused or ModelNotFound."""
        named = parse_qs(scope["query_string"].decode("latin-1")).get("model")
        if named:
            return self._fleet.find(named[0])
        running = [model for model in self._fleet.models if model.awake]
        if len({one.instance_id for model in running for one in model.awake}) == 1:
            return running[0]
        raise _Refused(
            _wrong_field("model", "is missing: say which model is meant; GET /v1/models lists them")
        )


def changed_body(model: Model, body: dict[str, Any]) -> dict[str, Any] | None:
    """The body as the engine is to have it; None where that is as it came."""
    profile = model.profile
    served = next((one.served_model_name for one in model.replicas.values()), None)
    wanted = served or model.name
    changes: dict[str, Any] = {} if body.get("model", wanted) == wanted else {"model": wanted}
    strip: frozenset[str] = frozenset()
    if profile is not None:
        changes |= profile.set_params
        strip = profile.strip_params & body.keys()
    if not changes and not strip:
        return None
    return {name: value for name, value in body.items() if name not in strip} | changes


def _parse(body: bytes) -> dict[str, Any]:
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        message = f"the body is not valid JSON: {error}"
        raise _Refused(api_error(400, message, "invalid_request_error", code="invalid_json")) from None
    if not isinstance(value, dict):
        message = "the body must be a JSON object"
        raise _Refused(api_error(400, message, "invalid_request_error", code="invalid_json"))
    return value


def _affinity(body: dict[str, Any]) -> bytes:
    """What requests share whose prompts begin alike."""
    prompt = body.get("messages") or body.get("prompt") or body.get("input")
    if isinstance(prompt, list):
        prompt = prompt[:2]
    return str(prompt)[:_AFFINITY_CHARS].encode("utf-8", "replace") if prompt else b""


def _wrong_field(name: str, problem: str) -> ApiError:
    return api_error(400, f"{name} {problem}", "invalid_request_error", param=name)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the new body once, then what the client still does (leave)."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_length(scope: Scope, length: int) -> Scope:
    kept = [(k, v) for k, v in scope["headers"] if k not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*kept, (b"content-length", b"%d" % length)]}


def _request_id(scope: Scope) -> bytes:
    return sane_request_id(find_header(scope["headers"], b"x-request-id"))


async def _send_error(scope: Scope, send: Send, error: ApiError) -> None:
    headers = [*error.headers, (b"x-request-id", _request_id(scope))]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": error.body})
