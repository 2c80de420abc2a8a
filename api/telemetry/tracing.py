"""A span for each request to Berth, with `traceparent` propagated to the engine.

`Tracing` wraps the whole application, only if spans are enabled: without it, `traceparent` is forwarded like
any header. It uses OpenTelemetry's API only; api/telemetry/trace_export.py exports the spans.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from api.http.asgi import App, Message, RawHeaders, Receive, Scope, Send
from api.http.dispatch import raw_path
from api.http.headers import find_header
from api.http.log_paths import loggable
from api.http.response_channel import EXTENSION, Handler, ResponseChannel, ResumeAsTask
from api.http.route import RoutedApp, Router
from api.telemetry.token_usage import TokenUsage

SPAN = "berth.span"  # a scope's key for its RequestSpan
_TRACEPARENT = b"traceparent"
_PROPAGATOR = TraceContextTextMapPropagator()
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE"})
# The semantic conventions' operation name of a path; the path is then also the span's route.
_OPERATIONS: Mapping[bytes, str] = {
    b"/chat/completions": "chat",
    b"/responses": "chat",
    b"/messages": "chat",
    b"/completions": "text_completion",
    b"/embeddings": "embeddings",
}


class RequestSpan:
    """The span of one request, from its arrival to its last byte. `end` is idempotent."""

    __slots__ = ("_has_ended", "_method", "_span", "_started", "_started_ns", "status")

    def __init__(self, tracer: Tracer, scope: Scope, parent: Context) -> None:
        path = raw_path(scope)
        given: str = scope.get("method", "GET")  # a WebSocket's handshake is a GET
        self._method = given if given in _METHODS else "HTTP"
        attributes: dict[str, str | int] = {
            "http.request.method": given if given in _METHODS else "_OTHER",
            "url.scheme": scope["scheme"],
            "url.path": loggable(path),
            "network.protocol.version": scope.get("http_version", "1.1"),
        }
        if given not in _METHODS:
            attributes["http.request.method_original"] = given
        if server := scope.get("server"):
            attributes |= {"server.address": server[0], "server.port": server[1] or 0}
        if client := scope.get("client"):
            attributes["client.address"] = client[0]
        if request_id := find_header(scope["headers"], b"x-request-id"):
            attributes["berth.request.id"] = request_id.decode("latin-1")
        name = self._method
        if (route := _route(path)) is not None:
            attributes["http.route"] = route
            name += f" {route}"
        if operation := _OPERATIONS.get(path.removeprefix(b"/v1")):
            attributes["gen_ai.operation.name"] = operation
        self._started, self._started_ns = time.perf_counter(), time.time_ns()
        self._span: Span = tracer.start_span(
            name, parent, SpanKind.SERVER, attributes, start_time=self._started_ns
        )
        self._has_ended = False
        self.status = 0  # of the response, once there is one

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def headers_with_parent(self, headers: RawHeaders) -> RawHeaders:
        """The headers with this span as the parent of the engine's; `tracestate` stays."""
        context = self._span.get_span_context()
        parent = f"00-{self.trace_id}-{context.span_id:016x}-{context.trace_flags:02x}".encode()
        return [*(pair for pair in headers if pair[0] != _TRACEPARENT), (_TRACEPARENT, parent)]

    def served(
        self,
        *,
        instance_id: str,
        model: str,
        key_id: str,
        request_id: bytes,
        queued_s: float | None,
        first_byte_s: float | None,
        usage: TokenUsage | None,
    ) -> None:
        """Record the data plane's facts; times are seconds since the request's arrival there."""
        span = self._span
        if not span.is_recording():
            return
        span.set_attribute("berth.request.id", request_id.decode())
        for name, value in (
            ("berth.instance.id", instance_id),
            ("gen_ai.request.model", model),
            ("berth.key.id", key_id),
        ):
            if value:
                span.set_attribute(name, value)
        if queued_s is not None:
            span.set_attribute("berth.queue.seconds", queued_s)
            span.add_event("berth.leased", timestamp=self._started_ns + int(queued_s * 1e9))
        if first_byte_s is not None:
            span.set_attribute("berth.first_byte.seconds", first_byte_s)
            span.add_event("berth.first_byte", timestamp=self._started_ns + int(first_byte_s * 1e9))
        if usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)

    def end(self, scope: Scope, error: BaseException | None = None) -> None:
        """End the span; `error`: the application's exception, if any."""
        if self._has_ended:
            return
        self._has_ended = True
        span, status = self._span, self.status
        if status:
            span.set_attribute("http.response.status_code", status)
        if (route := getattr(scope.get("route"), "path", None)) is not None:
            span.set_attribute("http.route", route)
            span.update_name(f"{self._method} {route}")
        if status >= 500 or error is not None:
            kind = str(status) if error is None else type(error).__qualname__
            span.set_attribute("error.type", kind)
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._started_ns + int((time.perf_counter() - self._started) * 1e9))


def span_of(scope: Scope) -> RequestSpan | None:
    """The request's span, if spans are enabled."""
    return scope.get(SPAN)


def trace_id_of(scope: Scope) -> str | None:
    """The id of the request's trace, in hexadecimal, if there is one."""
    span = span_of(scope)
    return None if span is None else span.trace_id


class Tracing(RoutedApp):
    """Begins a span for each request to `app`."""

    def __init__(self, app: Router, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    def route(self, scope: Scope) -> Handler:
        if scope["type"] == "lifespan":
            return self._app.route(scope)
        span = self._ensure_span(scope)
        return _Traced(self._app.route(scope), span)

    def _ensure_span(self, scope: Scope) -> RequestSpan:
        """The request's span, created if missing; then the scope's `traceparent` becomes ours."""
        if (span := span_of(scope)) is None:
            span = RequestSpan(self._tracer, scope, _parent(scope["headers"]))
            scope["headers"] = span.headers_with_parent(scope["headers"])
            scope[SPAN] = span
        return span


class _Traced(Handler):
    """One request: each has a span, and so a head, of its own."""

    __slots__ = ("_handler", "_span")

    def __init__(self, handler: Handler, span: RequestSpan) -> None:
        super().__init__(handler, lasts=False)
        self._handler = handler
        self._span = span

    def begin(
        self, scope: Scope, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask
    ) -> bool:
        """If the fast path is not taken, ASGI continues with the same span."""
        span = self._span
        watched = _WatchedChannel(channel, span, scope)

        def resume(app: App) -> None:
            watched.leave_to_task()

            async def application(scope: Scope, receive: Receive, send: Send) -> None:
                await _run(app, span, scope, receive, send)

            resume_as_task(application)

        return self._handler.begin(scope, body, watched, resume)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        extensions = scope.get("extensions")
        if extensions and EXTENSION in extensions:
            extensions[EXTENSION] = _WatchedChannel(extensions[EXTENSION], self._span)
        await _run(self._handler, self._span, scope, receive, send)


async def _run(app: App, span: RequestSpan, scope: Scope, receive: Receive, send: Send) -> None:
    async def watched(message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            span.status = message["status"]
        elif kind == "websocket.accept":
            span.status = 101
        await send(message)

    error: BaseException | None = None
    try:
        await app(scope, receive, watched)
    except BaseException as raised:
        error = raised
        raise
    finally:
        span.end(scope, error)


class _WatchedChannel:
    """A ResponseChannel that records the response's status in the span."""

    __slots__ = ("_channel", "_scope", "_span")

    def __init__(self, channel: ResponseChannel, span: RequestSpan, scope: Scope | None = None) -> None:
        """`scope`: of a request without a task, whose span ends with its response."""
        self._channel = channel
        self._span = span
        self._scope = scope

    def leave_to_task(self) -> None:
        """The request has a task from now on, which ends the span."""
        self._scope = None

    def is_ready(self) -> bool:
        return self._channel.is_ready()

    def send_whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        self._span.status = status
        self._channel.send_whole(status, headers, body)
        if self._scope is not None:
            self._span.end(self._scope)

    def send_piece(self, body: bytes) -> bool:
        return self._channel.send_piece(body)

    def abort(self) -> None:
        self._channel.abort()

    def num_unsent(self) -> int:
        return self._channel.num_unsent()

    def cut(self) -> None:
        self._channel.cut()


def _parent(headers: RawHeaders) -> Context:
    """The caller's span, if there is a W3C `traceparent` header."""
    given = find_header(headers, _TRACEPARENT)
    if not given:
        return Context()
    carrier = {
        "traceparent": given.decode("latin-1"),
        "tracestate": find_header(headers, b"tracestate").decode("latin-1"),
    }
    return _PROPAGATOR.extract(carrier, Context())


def _route(path: bytes) -> str | None:
    """The route for a path in a span's name; None if the router provides it or it is unbounded."""
    if path.startswith(b"/proxy/"):
        return "/proxy/{instance_id}/{path}"
    return path.decode() if path.removeprefix(b"/v1") in _OPERATIONS else None
