"""The one door: `/v1/*` and its unversioned kin, routed to a model by the name in the body.

Looks at a body as little as it must, once; changes it only where the model's profile or an alias asks for it;
then hands the request to the data plane, with a lease of whichever replica has room.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from pydantic_core import from_json

from api.access_log import log_answered
from api.asgi import Message, Receive, Scope, Send
from api.body_peek import Peeked, peek, replaying
from api.dialects import send_error
from api.dispatch import raw_path
from api.elsewhere import Detours, ModelElsewhere
from api.errors import ApiError, api_error, error_for
from api.headers import find_header, sane_request_id
from api.keep_alive import idle_timeout_s
from api.keys import may_use, model_refusal
from api.leases import Again, ClientGone
from api.model_leases import Asked, ModelLeases, affinity_of
from api.off_loop import off_loop
from api.patient_stream import PatientStream
from api.proxy import DataPlane
from api.response_channel import HandOver, ResponseChannel
from instance_manager.errors import ManagerError
from instance_manager.fleet import Fleet
from instance_manager.models import Model

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
_MAX_SHORT = 64 * 1024  # bytes of a body that is read at once
_MAX_KEPT = 4 * 2**20  # bytes of a body that is kept, to be sent a second time
_MULTIPART_MODEL = re.compile(rb'name="?model"?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n')


class _Refused(Exception):
    def __init__(self, error: ApiError) -> None:
        self.error = error


class Gateway:
    """An ASGI application for http scopes; `is_for` says which paths are its own."""

    def __init__(
        self,
        fleet: Fleet,
        data_plane: DataPlane,
        *,
        comment_interval_s: float = 10.0,
        detours: Detours | None = None,
    ) -> None:
        """`comment_interval_s`: how long a stream may wait in silence; 0 = as long as it takes."""
        self._fleet = fleet
        self._data_plane = data_plane
        self._comment_interval_s = comment_interval_s
        self._detours = detours  # to models of other Berths

    @staticmethod
    def is_for(scope: Scope) -> bool:
        """All under /v1/ but the list of models, which is Berth's own to tell."""
        path = raw_path(scope)
        if path.startswith(VERSIONED):
            return not (path == b"/v1/models" or path.startswith(b"/v1/models/"))
        return path in UNVERSIONED

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        try:
            asked = await self._read(scope, receive)
            if (refusal := model_refusal(scope, asked.model)) is not None:
                raise _Refused(refusal)
        except ClientGone:
            return
        except _Refused as refused:
            await self._refuse(scope, send, refused.error, started)
            return
        except ManagerError as error:
            await self._refuse(scope, send, error_for(error), started)
            return
        if asked.body is not None:
            scope = _with_length(scope, len(asked.body))
        elif asked.num_added and (length := find_header(scope["headers"], b"content-length")):
            scope = _with_length(scope, int(length) + asked.num_added)
        detour = asked.model.detour if isinstance(asked.model, ModelElsewhere) else None
        own = ModelLeases(self._fleet, asked)
        stream = None
        if asked.is_stream and self._comment_interval_s:
            request_id = (b"x-request-id", _request_id(scope))
            scope = {**scope, "headers": [*scope["headers"], request_id]}
            stream = PatientStream(send, self._comment_interval_s, [request_id], raw_path(scope))
        try:
            await self._data_plane.forward(
                scope,
                asked.receive,
                stream.send if stream else send,
                asked.model.name,
                _target(scope) if detour is None else detour.target,
                leases=detour or own,
                again=own.again if detour is None else None,
            )
        finally:
            if stream is not None:
                await stream.close()

    def begin(self, scope: Scope, body: bytes, channel: ResponseChannel, hand_over: HandOver) -> bool:
        """The short way, see `DataPlane.begin`, for what is short, no stream, and goes on as it came."""
        if scope["method"] != "POST" or len(body) > _MAX_SHORT:
            return False
        try:
            asked = from_json(body, allow_inf_nan=False)
            name = asked["model"]
            model = self._fleet.known(name)
            if (
                model is None
                or not may_use(scope, model)
                or asked.get("stream")
                or "keep_alive" in asked
                or changed_body(model, asked) is not None
            ):
                return False
            lease = self._fleet.try_lease(model, affinity_of(model, asked))
        except (ValueError, TypeError, KeyError, AttributeError, ManagerError):
            return False  # the other way says what is wrong

        def more() -> tuple[ModelLeases, Again]:
            leases = ModelLeases(self._fleet, Asked(model, _never, None, whole=body))
            return leases, leases.again

        return self._data_plane.begin_leased(
            scope, body, channel, hand_over, model.name, _target(scope), lease, more
        )

    async def _refuse(self, scope: Scope, send: Send, error: ApiError, started: float) -> None:
        """Answer here; nobody else hears of the request, so it is counted and logged here too."""
        self._data_plane.count_refused(scope["method"], error.status)
        await _refuse(scope, send, error, started)

    async def _read(self, scope: Scope, receive: Receive) -> Asked:
        """Find the model. Raises _Refused, ManagerError or ClientGone."""
        content_type = find_header(scope["headers"], b"content-type").lower()
        if scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
            return Asked(self._named_in_query(scope), receive, None)
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
            model = self._find(scope, name)
        else:
            raise _Refused(_wrong_field("model", f"must be a string, not {name!r}"))
        return await self._asked(model, body, peeked)

    async def _asked(self, model: Model, body: dict[str, Any], peeked: Peeked) -> Asked:
        priority = body.get("priority")
        try:
            timeout_s = idle_timeout_s(body["keep_alive"]) if "keep_alive" in body else None
        except ValueError as error:
            raise _Refused(_wrong_field("keep_alive", str(error))) from None
        asked = Asked(
            model,
            peeked.replay,
            None,
            is_stream=body.get("stream") is True,
            priority=priority if isinstance(priority, int) else 0,
            affinity=affinity_of(model, body),
            idle_timeout_s=timeout_s,
        )
        changed = changed_body(model, body)
        if changed is not None:
            raw = await off_loop(len(peeked.body or b""), lambda: json.dumps(changed).encode())
            asked.body, asked.receive = raw, replaying(raw, peeked.receive)
        whole = asked.body or peeked.body
        if whole is not None and len(whole) <= _MAX_KEPT:
            asked.whole = whole
        return asked

    async def _read_upload(self, scope: Scope, receive: Receive) -> Asked:
        """Of a form only the beginning is looked at; it goes on as it comes, but for the model's name."""
        peeked = await peek(receive, _MAX_UPLOAD_PEEK)
        begun = b"".join(message.get("body", b"") for message in peeked.messages)
        found = _MULTIPART_MODEL.search(begun)
        if found is None:
            return Asked(self._named_in_query(scope), peeked.replay, None)
        model = self._find(scope, found[1].decode("utf-8", "replace"))
        name = model.served_name.encode()
        if name != found[1]:
            last = peeked.messages[-1]
            peeked.messages.clear()
            peeked.messages.append({**last, "body": begun[: found.start(1)] + name + begun[found.end(1) :]})
        return Asked(model, peeked.replay, None, num_added=len(name) - len(found[1]))

    def _find(self, scope: Scope, name: str) -> Model:
        """By name or alias: here, or where another Berth has it. Raises ModelNotFound."""
        model, detours = self._fleet.known(name), self._detours
        if detours is None:
            return model or self._fleet.find(name)
        if model is None:
            return detours.to_unknown(scope, name) or self._fleet.find(name)
        return detours.to_running(scope, model) or model

    def _named_in_query(self, scope: Scope) -> Model:
        """`?model=`; without it the only model that runs. Raises _Refused or ModelNotFound."""
        named = parse_qs(scope["query_string"].decode("latin-1")).get("model")
        if named:
            return self._find(scope, named[0])
        running = [model for model in self._fleet.models if model.awake]
        if len({one.instance_id for model in running for one in model.awake}) == 1:
            return running[0]
        raise _Refused(
            _wrong_field("model", "is missing: say which model is meant; GET /v1/models lists them")
        )


def _target(scope: Scope) -> bytes:
    """Path and query as the engine knows them."""
    path = raw_path(scope)
    target = UNVERSIONED.get(path, path)
    return target + b"?" + scope["query_string"] if scope["query_string"] else target


async def _never() -> Message:
    """A `receive` for a request that has arrived whole, where the server tells of the client's leaving."""
    raise AssertionError("nobody asks")


def changed_body(model: Model, body: dict[str, Any]) -> dict[str, Any] | None:
    """The body as the engine is to have it; None where that is as it came."""
    profile = model.profile
    wanted = model.served_name
    if body.get("model") == wanted and (profile is None or not (profile.set_params or profile.strip_params)):
        return None
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


def _wrong_field(name: str, problem: str) -> ApiError:
    return api_error(400, f"{name} {problem}", "invalid_request_error", param=name)


def _with_length(scope: Scope, length: int) -> Scope:
    kept = [(k, v) for k, v in scope["headers"] if k not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*kept, (b"content-length", b"%d" % length)]}


def _request_id(scope: Scope) -> bytes:
    return sane_request_id(find_header(scope["headers"], b"x-request-id"))


async def _refuse(scope: Scope, send: Send, error: ApiError, started: float) -> None:
    request_id = _request_id(scope)
    log_answered(scope, error.status, started, request_id, "refused by the gateway")
    await send_error(send, error, raw_path(scope), request_id)
