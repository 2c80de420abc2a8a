"""Reads as much of a request as is needed to find the model it names. Knows no models.

JSON is read whole. A form is buffered until the model's name is found, so the order of its parts does not
matter, and streamed from then on. If a later part names another model, which engines may read in place of
the first, the stream is aborted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from api.gateway.form_scan import FormScanner, InvalidForm
from api.gateway.json_worker_pool import LONG_BYTES, JsonWorkerPool
from api.gateway.request_body import FormBody, JsonBody, OutgoingBody, RequestBody
from api.http.asgi import Message, Receive, Scope
from api.http.buffered_body import buffer_body
from api.http.client_errors import ClientGone, WrongBody
from api.http.headers import find_header
from api.http.json_structure import PartCounter, TooManyParts
from api.http.named_model import InvalidBody, model_in_fields, model_in_object, read_object, without_bom
from api.http.off_loop import off_loop
from instance_manager.fleet.profiles import ModelProfile

MAX_BODY_BYTES = 256 * 2**20
# Of JSON, which is parsed whole: enough for images of some 48 MiB in data URLs.
MAX_JSON_BYTES = 64 * 2**20
_MIN_FORM_BYTES = 64 * 1024  # of a form are scanned, even after its model has been found
_WITHOUT_BODY = ("GET", "HEAD", "DELETE", "OPTIONS")  # unless they announce a body


class BodyTooLong(Exception):
    """The body exceeds the limit in the message."""


@dataclass(slots=True)
class ReadRequest:
    """The part of a request that has been read. `name`: the model in its body; None = certainly none."""

    name: str | None
    receive: Receive  # the rest of the client's messages
    raw: bytes | None = None  # read so far; None = no body
    fields: dict[str, Any] | None = None  # of a JSON object
    workers: JsonWorkerPool | None = None  # if it is long: they have parsed it, and `fields` is an outline
    form: FormBody | None = None
    length: int | None = None  # as announced; None = chunked

    @property
    def is_stream(self) -> bool:
        return self.fields is not None and self.fields.get("stream") is True

    def outgoing(self, profile: ModelProfile | None, *, is_for_peer: bool = False) -> OutgoingBody | None:
        """The body, to be adapted to an engine or another node; `profile` is the model's."""
        body: RequestBody | None = self.form
        if self.fields is not None and self.raw is not None:
            text = without_bom(self.raw)
            body = JsonBody(
                text,
                self.fields,
                profile,
                num_bytes=len(self.raw),
                is_for_peer=is_for_peer,
                workers=self.workers,
            )
        return None if body is None else OutgoingBody(body, self.length)


async def read_request(scope: Scope, receive: Receive, workers: JsonWorkerPool) -> ReadRequest:
    """Raises InvalidBody, InvalidForm, UnclearModel, BodyTooLong or ClientGone."""
    headers = scope["headers"]
    announced = find_header(headers, b"content-length")
    is_chunked = bool(find_header(headers, b"transfer-encoding"))
    if scope["method"] in _WITHOUT_BODY and not is_chunked and announced.strip(b"0") == b"":
        return ReadRequest(None, receive)
    length = None if is_chunked or not announced else int(announced)
    content_type = find_header(headers, b"content-type")
    kind = content_type.lower()
    if kind.startswith(b"multipart/"):
        return await _read_multipart(receive, content_type, length)
    if length is not None and length > MAX_JSON_BYTES:
        raise _too_long(MAX_JSON_BYTES)
    try:
        buffered = await buffer_body(receive, MAX_JSON_BYTES, PartCounter().feed)
    except TooManyParts as error:
        raise InvalidBody(str(error)) from None
    if (raw := buffered.body) is None:
        raise _too_long(MAX_JSON_BYTES)
    buffered.messages.clear()  # `raw` has them all
    is_form = kind.startswith(b"application/x-www-form-urlencoded") and not raw.lstrip().startswith(b"{")
    if is_form or not raw:
        form = FormBody(raw, has_more=False, is_url_encoded=is_form)
        return ReadRequest(model_in_fields(raw), receive, raw, form=form, length=length)
    if len(raw) > LONG_BYTES:
        outline = await workers.read(without_bom(raw))
        return ReadRequest(outline.name, receive, raw, outline.fields, length=length, workers=workers)

    def read() -> tuple[dict[str, Any], str | None]:
        fields = read_object(without_bom(raw))
        return fields, model_in_object(raw, fields)

    fields, name = await off_loop(len(raw), read)
    return ReadRequest(name, receive, raw, fields, length=length)


async def _read_multipart(receive: Receive, content_type: bytes, length: int | None) -> ReadRequest:
    """Read up to the field `model`, wherever it is."""
    scanner = FormScanner(content_type)
    pieces: list[bytes] = []
    size, has_more = 0, True
    while has_more and not scanner.is_complete and (scanner.model is None or size < _MIN_FORM_BYTES):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        pieces.append(piece)
        size, has_more = size + len(piece), message.get("more_body", False)
        if size > MAX_BODY_BYTES:
            raise _too_long(MAX_BODY_BYTES)
        scanner.feed(piece)
    found, raw = scanner.model, b"".join(pieces)
    if found is None:
        if not scanner.is_complete:
            raise InvalidForm("it ends before its closing boundary, without a field `model`")
        return ReadRequest(None, receive, raw, form=FormBody(raw, has_more=has_more), length=length)
    form = FormBody(raw, found.start, found.end, has_more=has_more)
    return ReadRequest(found.value, _watched(receive, scanner), raw, form=form, length=length)


def _watched(receive: Receive, scanner: FormScanner) -> Receive:
    """A `receive` that raises WrongBody once the form turns out to be invalid."""
    problem: str | None = None

    async def watched() -> Message:
        nonlocal problem
        if problem is None:
            message = await receive()
            try:
                scanner.feed(message.get("body", b""))
                return message
            except InvalidForm as error:
                problem = f"the form can't be parsed: {error}"
        raise WrongBody(problem)

    return watched


def _too_long(limit: int) -> BodyTooLong:
    return BodyTooLong(f"the body exceeds {limit >> 20} MiB, the limit for its type; send a smaller one")


__all__ = ["BodyTooLong", "InvalidBody", "InvalidForm", "ReadRequest", "read_request"]
