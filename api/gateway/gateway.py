"""The gateway: `/v1/*` and its unversioned variants, routed to a model by the name in the body.

Parses a body at most once; changes it only if the model's profile or an alias requires it; then passes the
request to the data plane, with a lease of any replica that has capacity.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic_core import from_json

from api.access.engine_routes import SAFE_METHODS
from api.access.keys import is_admin, may_use, model_refusal
from api.gateway.engine_paths import UNVERSIONED, VERSIONED, engine_path, need_for, plain_path
from api.gateway.json_worker_pool import JsonWorkerPool
from api.gateway.keep_alive import idle_timeout_s
from api.gateway.model_target import ModelTarget, affinity_of, for_peer
from api.gateway.request_body import OWN_FIELDS, has_filters
from api.gateway.request_reader import BodyTooLong, InvalidBody, InvalidForm, ReadRequest, read_request
from api.gateway.signs_of_life import SignOfLife, sign_of_life
from api.gateway.sse_keep_alive import SseKeepAlive
from api.gateway.stored_responses import StoredResponses, owner_of
from api.gateway.translation import Dialects, EngineTranslation
from api.http.asgi import App, Receive, Scope, Send
from api.http.client_errors import ClientGone
from api.http.dispatch import raw_path
from api.http.errors import ApiError, RequestRefused, api_error, error_for
from api.http.headers import find_header
from api.http.named_model import UnclearModel, has_one_model, model_in_query, without_bom
from api.http.request_times import COLLECTED
from api.http.respond import request_id_of, send_error
from api.http.response_channel import Handler, ResponseChannel, ResumeAsTask
from api.protocols.base import RequestContext
from api.proxy.peer_routes import PeerRoutes, PeerTarget
from api.proxy.proxy import DataPlane
from api.proxy.target import Target
from api.proxy.upstream_request import HeadersOfHead
from api.telemetry.access_log import log_answered
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.errors import InstanceNotRunning, ManagerError
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.models import Model

_MAX_FAST_BODY = 64 * 1024  # bytes of a body that may take the fast path


class Gateway:
    """An ASGI application for http scopes; `is_for` says which paths it serves."""

    def __init__(
        self,
        fleet: Fleet,
        data_plane: DataPlane,
        *,
        comment_interval_s: float = 10.0,
        peer_routes: PeerRoutes | None = None,
        dialects: Dialects | None = None,
        responses: StoredResponses | None = None,
        has_loading_text: bool = False,
    ) -> None:
        """`comment_interval_s`: between the signs of life of a waiting stream; 0 = none."""
        self._has_loading_text = has_loading_text  # streamed chats tell how far the start is
        self._dialects = dialects or Dialects()
        self._responses = responses
        self._fleet = fleet
        self._data_plane = data_plane
        self._comment_interval_s = comment_interval_s
        self._json_workers = JsonWorkerPool()
        self._peer_routes = peer_routes  # to models of other nodes

    @staticmethod
    def is_for(scope: Scope) -> bool:
        """All paths under /v1/ except the list of models, which Berth serves itself."""
        path = raw_path(scope)
        if path.startswith(VERSIONED):
            return not (path == b"/v1/models" or path.startswith(b"/v1/models/"))
        return path in UNVERSIONED

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._responses is not None and await self._responses.serve(scope, send):
            return
        started = time.perf_counter()
        request_id, sign = b"", SignOfLife()
        try:
            read = await self._read(scope, receive)
            is_waiting = read.is_stream and self._comment_interval_s > 0 and COLLECTED not in scope
            if is_waiting:
                request_id = request_id_of(scope)
                sign = self._sign(scope, read.fields or {}, request_id)
            target = self._target(scope, read, sign)
        except ClientGone:
            return
        except RequestRefused as refused:
            await self._refuse(scope, send, refused.error, started)
            return
        except ManagerError as error:
            await self._refuse(scope, send, error_for(error, is_admin=is_admin(scope)), started)
            return
        if not is_waiting:
            await self._data_plane.forward(scope, read.receive, send, target)
            return
        if not isinstance(target, ModelTarget):  # the other node sends signs of its own
            sign = SignOfLife()
        headers = [(b"x-request-id", request_id)]
        interval_s, progress = self._comment_interval_s, target.load_progress
        async with SseKeepAlive(send, interval_s, headers, raw_path(scope), sign, progress) as stream:
            scope = stream.scope_for_engine({**scope, "headers": [*scope["headers"], *headers]})
            await self._data_plane.forward(scope, read.receive, stream.send, target)

    def _sign(self, scope: Scope, fields: Mapping[str, Any], request_id: bytes) -> SignOfLife:
        """What the client of a stream counts as life."""
        shown_id = request_id.decode("latin-1")
        return sign_of_life(scope, plain_path(scope), fields, shown_id, has_text=self._has_loading_text)

    async def target_for(self, scope: Scope, receive: Receive, name: str) -> tuple[Target, Receive]:
        """Where a request for this model goes, whatever its body calls it, and the rest of its messages.

        Raises RequestRefused, ManagerError and ClientGone.
        """
        read = await self._read(scope, receive)
        read.name = name
        return self._target(scope, read, SignOfLife()), read.receive

    def handler(self, scope: Scope, app: App) -> Handler:
        """The fast path for a POST of JSON whose query names no model; `app` leads here, for all others."""
        try:
            is_short = _posts_json(scope) and model_in_query(scope["query_string"]) is None
        except UnclearModel:
            is_short = False
        if not is_short:
            return Handler(app)
        path = plain_path(scope)
        dialect = path if self._dialects.translates(path) else None
        return Handler(
            app, partial(self._begin, engine_path(scope), need_for(scope), dialect, HeadersOfHead())
        )

    def _begin(
        self,
        path: bytes,
        need: RunnerKind | None,
        dialect: str | None,
        headers: HeadersOfHead,
        scope: Scope,
        body: bytes,
        channel: ResponseChannel,
        resume_as_task: ResumeAsTask,
    ) -> bool:
        """The fast path, for short bodies that are forwarded unchanged; no streams."""
        if len(body) > _MAX_FAST_BODY:
            return False
        try:
            fields = from_json(body, allow_inf_nan=False)
            name = fields["model"]
            model = self._fleet.known(name)
            if (
                model is None
                or not may_use(scope, model)
                or fields.get("stream")
                or not OWN_FIELDS.isdisjoint(fields)
                or has_filters(model.profile)
                or not has_one_model(body)
            ):
                return False
            affinity = affinity_of(model, fields, scope)
            target = ModelTarget(self._fleet, model, model.name, path, name, need, body, affinity)
            lease = target.try_acquire()
        except (ValueError, TypeError, KeyError, AttributeError, ManagerError):
            return False  # the ordinary path reports what is wrong
        if lease is None:
            return False
        if lease.endpoint.served_name not in (name, ""):
            lease.release()  # its engine serves the model under another name
            return False
        if dialect is not None and not lease.endpoint.speaks.get(dialect):
            lease.release()  # its engine may not speak this API
            return False
        return self._data_plane.begin_leased(target, lease, headers, scope, body, channel, resume_as_task)

    async def _refuse(self, scope: Scope, send: Send, error: ApiError, started: float) -> None:
        """Respond here; the request goes no further, so it is counted and logged here too."""
        self._data_plane.count_refused(scope["method"], error.status)
        request_id = request_id_of(scope)
        log_answered(scope, error.status, started, request_id, "refused by the gateway")
        await send_error(send, error, raw_path(scope), request_id)

    async def _read(self, scope: Scope, receive: Receive) -> ReadRequest:
        """Raises RequestRefused or ClientGone."""
        try:
            return await read_request(scope, receive, self._json_workers)
        except UnclearModel as error:
            raise RequestRefused(_wrong_field("model", str(error))) from None
        except InvalidForm as error:
            raise RequestRefused(_bad_body(f"the form can't be parsed: {error}", "invalid_form")) from None
        except InvalidBody as error:
            raise RequestRefused(_bad_body(str(error), "invalid_json")) from None
        except BodyTooLong as error:
            raise RequestRefused(_bad_body(str(error), "body_too_large", 413)) from None

    def _target(self, scope: Scope, read: ReadRequest, sign: SignOfLife) -> Target:
        """Find the model. Raises RequestRefused or ManagerError."""
        try:
            model = self._model(scope, read.name)
        except UnclearModel as error:
            raise RequestRefused(_wrong_field("model", str(error))) from None
        if (refusal := model_refusal(scope, model)) is not None:
            raise RequestRefused(refusal)
        fields = read.fields or {}
        try:
            idle_s = idle_timeout_s(fields.get("keep_alive"))
        except ValueError as error:
            raise RequestRefused(_wrong_field("keep_alive", str(error))) from None
        if isinstance(model, PeerTarget):
            names_adapter = read.name is not None and self._fleet.adapter_in(read.name) is not None
            return for_peer(model, read, names_adapter=names_adapter)
        if scope["method"] in SAFE_METHODS and not (model.awake or model.is_starting):
            raise InstanceNotRunning(
                f"model {model.name!r} is not running, and a {scope['method']} request does not start it; "
                f"start it with POST /models/{model.name}/start"
            )
        priority = fields.get("priority")
        return ModelTarget(
            self._fleet,
            model,
            model.name,
            engine_path(scope),
            read.name,
            need_for(scope),
            read.outgoing(model.profile),
            affinity_of(model, fields, scope),
            priority if isinstance(priority, int) else 0,
            idle_s,
            dialect=self._translation(scope, read, model.name, sign),
        )

    def _translation(
        self, scope: Scope, read: ReadRequest, model: str, sign: SignOfLife
    ) -> EngineTranslation | None:
        """For engines that don't speak the request's API."""
        path = plain_path(scope)
        if scope["method"] != "POST" or read.raw is None or not self._dialects.translates(path):
            return None
        context = RequestContext(owner_of(scope), sign.begun)
        return EngineTranslation(self._dialects, path, without_bom(read.raw), model, context)

    def _model(self, scope: Scope, in_body: str | None) -> Model | PeerTarget:
        """The model that a request names in its body or query; without a name the only running one.

        Raises UnclearModel, RequestRefused or ModelNotFound.
        """
        in_query = model_in_query(scope["query_string"])
        name = in_query if in_body is None else in_body
        if name is None:
            return self._only_model()
        model = self._find(scope, name)
        if in_query not in (None, name) and self._find(scope, in_query or "").name != model.name:
            raise UnclearModel(f"is {in_body!r} in the body and {in_query!r} in the query; name one")
        return model

    def _find(self, scope: Scope, name: str) -> Model | PeerTarget:
        """By name or alias: on this node, or on another one. Raises ModelNotFound."""
        model, peer_routes = self._fleet.known(name), self._peer_routes
        if peer_routes is None:
            return model or self._fleet.find(name)
        if model is None:
            return peer_routes.to_unknown(scope, name, need_for(scope)) or self._fleet.find(name)
        return peer_routes.to_running(scope, model, need_for(scope)) or model

    def _only_model(self) -> Model:
        """For a request that names no model. Raises RequestRefused."""
        running = [model for model in self._fleet.models if model.awake]
        if len({instance.instance_id for model in running for instance in model.awake}) == 1:
            return running[0]
        raise RequestRefused(_wrong_field("model", "is missing; name one of the models in GET /v1/models"))


def _posts_json(scope: Scope) -> bool:
    """Whether it may be so by its head: no parts of a form, and no coding to be undone."""
    headers = scope["headers"]
    is_form = find_header(headers, b"content-type").lower().startswith(b"multipart/")
    return scope["method"] == "POST" and not is_form and not find_header(headers, b"content-encoding")


def _wrong_field(name: str, problem: str) -> ApiError:
    return api_error(400, f"{name} {problem}", "invalid_request_error", param=name)


def _bad_body(problem: str, code: str, status: int = 400) -> ApiError:
    return api_error(status, problem, "invalid_request_error", code=code)
