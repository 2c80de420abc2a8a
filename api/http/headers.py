"""Which headers the proxy forwards, and how (RFC 9110, section 7.6). Pure functions on raw byte pairs.

Order, duplicates and values are kept; names are in lower case, as in ASGI.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from api.http.asgi import RawHeaders

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",  # trailers themselves are dropped: ASGI servers cannot send them
        b"transfer-encoding",
        b"upgrade",
    }
)

# Headers that `Connection` may not remove: those for the body's length and the request's destination.
_NOT_NOMINABLE = frozenset({b"content-length", b"host", b"transfer-encoding", b"x-request-id"})

# The node that forwarded the request; with this header it is not forwarded to another node again.
VIA = b"x-berth-via"

# Set by that node if it translates the response: the client does not see it as it is.
TRANSLATED = b"x-berth-translated"

# The tenant of a request to our own engine. Set by Berth; a client's is dropped.
TENANT = b"x-berth-tenant"

# Headers with the client's key: OpenAI's, Anthropic's, Azure's. It is for Berth; the engine gets its own.
KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")

# Or, as a browser can set no header for a WebSocket: among the subprotocols of its handshake.
_KEY_PROTOCOL = "openai-insecure-api-key."

# Request headers that are read, replaced or dropped; all others are copied unchanged.
_REQUEST_SPECIAL = HOP_BY_HOP | {
    VIA,
    TRANSLATED,
    TENANT,
    *KEY_HEADERS,
    b"content-length",
    b"expect",  # answered by the server in front of us; forwarded, it makes clients and engines wait
    b"host",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-request-id",
}

_RESPONSE_SPECIAL = HOP_BY_HOP | {b"content-length", b"content-type", b"x-accel-buffering", b"x-request-id"}

_EVENTS = b"text/event-stream"
_LINES = (b"application/x-ndjson", b"application/jsonl", b"application/stream+json")
_UNBUFFERED = (b"x-accel-buffering", b"no")

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_IDS_AT_ONCE = 256


def _random_ids() -> Iterator[bytes]:
    """Many per system call: one call each would cost as much as the rest of the head."""
    while True:
        drawn = bytearray(os.urandom(16 * _IDS_AT_ONCE))
        drawn[6::16] = b"\x4a" * _IDS_AT_ONCE  # a UUID's version and variant digits
        drawn[8::16] = b"\xa4" * _IDS_AT_ONCE
        yield from drawn.hex(" ", 16).encode().split()


_ids = _random_ids()


def new_request_id() -> bytes:
    """A request id that is unique across nodes and can't be guessed, since it can be used to abort a request.

    It is formatted as a UUID: llama-cpp-python's server, for one, rejects any other.
    """
    return next(_ids)


@dataclass(slots=True)
class RequestHeaders:
    """A client's request headers, split into those forwarded unchanged and those that Berth interprets.

    `passed`, `framing` and `forwarded` are encoded lines: those forwarded unchanged, the one that frames the
    body, and X-Forwarded-* with the empty line that ends the head. `Host` and `Authorization` are specific to
    the engine and not included.
    """

    passed: bytes
    framing: bytes
    request_id: bytes
    forwarded: bytes
    has_body: bool
    is_chunked: bool

    def for_next(self, length: int) -> RequestHeaders:
        """The headers of the next request with the same head, whose body has `length` bytes."""
        framing = b"content-length: %d\r\n" % length if self.framing else b""
        return RequestHeaders(self.passed, framing, new_request_id(), self.forwarded, length > 0, False)

    def with_length(self, length: int) -> RequestHeaders:
        """The same with a body of `length` bytes."""
        framing = b"content-length: %d\r\n" % length
        return replace(self, framing=framing, has_body=length > 0, is_chunked=False)

    def without(self, name: bytes) -> RequestHeaders:
        """The same without the header of this name, in lower case."""
        lines = [line for line in self.passed.split(b"\r\n") if not line.lower().startswith(name + b":")]
        return replace(self, passed=b"\r\n".join(lines))

    def with_more(self, headers: Iterable[tuple[bytes, bytes]]) -> RequestHeaders:
        """The same with these headers added."""
        lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        return replace(self, passed=self.passed + lines)


def read_request_headers(headers: RawHeaders, client: bytes, scheme: bytes) -> RequestHeaders:
    """Split a request's headers. `client` is the peer's address, `scheme` http or https."""
    passed: list[bytes] = []
    request_id = host = forwarded_for = forwarded_host = forwarded_proto = framing = b""
    has_body = is_chunked = False
    for name, value in headers:
        if name not in _REQUEST_SPECIAL:
            passed += (name, b": ", value, b"\r\n")
        elif name == b"host":
            host = value
        elif name == b"connection":
            if nominated_by(value):
                return read_request_headers(without_nominated(headers), client, scheme)
        elif name == b"content-length":
            framing = framing or b"content-length: %b\r\n" % value
            has_body = has_body or value.strip(b"0") != b""
        elif name == b"transfer-encoding":
            is_chunked = has_body = True
            framing = b"transfer-encoding: chunked\r\n"
        elif name == b"x-request-id":
            request_id = value
        elif name == b"x-forwarded-for":
            forwarded_for = forwarded_for + b", " + value if forwarded_for else value
        elif name == b"x-forwarded-host":
            forwarded_host = forwarded_host or value
        elif name == b"x-forwarded-proto":
            forwarded_proto = forwarded_proto or value
    forwarded = (
        b"\r\nx-forwarded-for: ",
        forwarded_for + b", " + client if forwarded_for else client,
        b"\r\nx-forwarded-proto: ",
        forwarded_proto or scheme,
        b"\r\nx-forwarded-host: ",
        forwarded_host or host,
        b"\r\n\r\n",
    )
    return RequestHeaders(
        b"".join(passed), framing, sane_request_id(request_id), b"".join(forwarded), has_body, is_chunked
    )


def sane_request_id(given: bytes) -> bytes:
    """The client's request id if it is printable ASCII of at most 128 bytes, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else new_request_id()


def nominated_by(connection: bytes) -> frozenset[bytes]:
    """The headers that a `Connection` value removes, beyond those that are never forwarded."""
    if connection == b"keep-alive":
        return frozenset()
    options = frozenset(option.strip() for option in connection.lower().split(b","))
    return options - HOP_BY_HOP - _NOT_NOMINABLE - {b"", b"close"}


def without_nominated(headers: RawHeaders) -> RawHeaders:
    """The headers without every `Connection` and the headers it names."""
    nominated = frozenset[bytes]().union(
        *(nominated_by(value) for name, value in headers if name == b"connection")
    )
    return [pair for pair in headers if pair[0] != b"connection" and pair[0] not in nominated]


def response_headers(headers: RawHeaders, status: int, request_id: bytes) -> tuple[RawHeaders, bool]:
    """The response headers for the client, and whether an SSE event may be appended to the body.

    `Content-Length` is removed from 204 and 304: they have no body, and servers refuse to announce one.
    """
    kept: RawHeaders = []
    is_event_stream = is_encoded = has_accel = has_lines = False
    for pair in headers:
        name = pair[0]
        if name not in _RESPONSE_SPECIAL:
            kept.append(pair)
        elif name == b"content-length":
            if status != 304 and status != 204:
                kept.append(pair)
        elif name == b"content-type":
            content_type = pair[1].lower()
            is_event_stream = content_type.startswith(_EVENTS)
            has_lines = content_type.startswith(_LINES)
            kept.append(pair)
        elif name == b"connection":
            if nominated_by(pair[1]):
                return response_headers(without_nominated(headers), status, request_id)
        elif name == b"x-accel-buffering":
            has_accel = True
            kept.append(pair)
    kept.append((b"x-request-id", request_id))
    if (is_event_stream or has_lines) and not has_accel:
        kept.append(_UNBUFFERED)
    if is_event_stream:
        is_encoded = any(name in (b"content-encoding", b"content-length") for name, _ in kept)
    return kept, is_event_stream and not is_encoded


# Headers of the opening handshake; the WebSocket client towards the engine sends its own.
_HANDSHAKE = frozenset(
    {
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
    }
)
_HANDSHAKE_DROPPED = _HANDSHAKE | HOP_BY_HOP | {b"content-length", b"x-request-id"}
_HANDSHAKE_REQUEST = _HANDSHAKE_DROPPED | {VIA, TRANSLATED, TENANT, *KEY_HEADERS, b"expect", b"host"}
_HANDSHAKE_RESPONSE = _HANDSHAKE_DROPPED | {b"date"}


def handshake_headers(headers: RawHeaders) -> RawHeaders:
    """The request headers of a WebSocket handshake that are forwarded to the engine."""
    return [pair for pair in without_nominated(headers) if pair[0] not in _HANDSHAKE_REQUEST]


def handshake_response_headers(headers: RawHeaders) -> RawHeaders:
    """The engine's handshake response headers that are returned to the client."""
    return [pair for pair in without_nominated(headers) if pair[0] not in _HANDSHAKE_RESPONSE]


def key_in_subprotocols(subprotocols: Iterable[str]) -> bytes:
    """The API key among them, or empty."""
    found = (name for name in subprotocols if _is_key_protocol(name))
    return next(found, "")[len(_KEY_PROTOCOL) :].encode("latin-1", "replace")


def without_key(subprotocols: Iterable[str]) -> list[str]:
    """The subprotocols without the key."""
    return [name for name in subprotocols if not _is_key_protocol(name)]


def _is_key_protocol(name: str) -> bool:
    return name.lower().startswith(_KEY_PROTOCOL)


def find_header(headers: RawHeaders, wanted: bytes) -> bytes:
    """The first value of a header, or empty."""
    return next((value for name, value in headers if name == wanted), b"")
