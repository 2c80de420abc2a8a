"""A request as it is sent to an engine: its target, headers and framing, and what is measured of it."""

from __future__ import annotations

from dataclasses import dataclass

from api.http.asgi import Scope
from api.http.headers import RequestHeaders, find_header, read_request_headers
from api.telemetry.token_usage import TokenUsage

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})


class HeadersOfHead:
    """The headers of requests with one head, which are read once."""

    __slots__ = ("_read",)

    def __init__(self) -> None:
        self._read: RequestHeaders | None = None

    def of(self, scope: Scope, length: int) -> RequestHeaders:
        """The next request's; `length` of its body, if it has arrived."""
        if self._read is not None:
            return self._read.for_next(length)
        client = scope.get("client")
        client_host = client[0].encode() if client else b"unknown"
        headers = read_request_headers(scope["headers"], client_host, scope["scheme"].encode())
        if not find_header(scope["headers"], b"x-request-id"):
            self._read = headers
        return headers


@dataclass(slots=True)
class UpstreamRequest:
    """A request to an engine; `target` is path and query exactly as the client sent them."""

    method: str
    target: bytes
    headers: RequestHeaders
    started: float  # time.perf_counter() on arrival
    tenant_line: bytes = b""  # the tenant header, for engines that support tenants
    first_byte_s: float | None = None  # from `started` to the response head
    queued_s: float | None = None  # from `started` to the lease, if it had to wait
    usage: TokenUsage | None = None  # of the response, once it is complete

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be sent twice (idempotent, and without a body to replay)."""
        return not self.headers.has_body and self.method in _IDEMPOTENT

    def framed(self, body: bytes, *, is_last: bool) -> bytes:
        """A piece of the body with its framing."""
        if not self.headers.is_chunked:
            return body
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return chunk + b"0\r\n\r\n" if is_last else chunk

    def encode(self, identity: bytes, body: bytes) -> bytes:
        """The head with the engine's `identity` lines, and the part of the body at hand (framed)."""
        headers = self.headers
        pieces = (
            self.method.encode(),
            b" ",
            self.target,
            b" HTTP/1.1\r\n",
            identity,
            headers.passed,
            headers.framing,
            b"x-request-id: ",
            headers.request_id,
            headers.forwarded,
            body,
        )
        return b"".join(pieces)
