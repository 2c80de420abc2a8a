"""The field `model` of a multipart form: found in any position and spelling, or refused."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from api.gateway.form_scan import FormScanner, InvalidForm

TYPE = b'multipart/form-data; boundary="a b"'
FILE = b'Content-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav\r\n\r\n'
PLAIN = b'Content-Disposition: form-data; name="model"\r\n\r\n'


def form(*parts: bytes, end: bytes = b"--a b--\r\n") -> bytes:
    return b"".join(b"--a b\r\n" + part + b"\r\n" for part in parts) + end


def scan(body: bytes, piece: int = 1 << 20) -> FormScanner:
    scanner = FormScanner(TYPE)
    for start in range(0, len(body), piece):
        scanner.feed(body[start : start + piece])
    return scanner


@pytest.mark.parametrize("piece", [1, 2, 5, 13, 1 << 20])
@pytest.mark.parametrize(
    "head",
    [
        PLAIN,
        b"content-disposition:form-data;name=model\r\n\r\n",
        b'Content-Type: text/plain; charset=UTF-8\r\nContent-Disposition: form-data; NAME="model"\r\n\r\n',
        b"Content-Disposition: form-data; name*=utf-8''%6dodel\r\n\r\n",
        b'Content-Disposition: form-data;\r\n name="model"\r\n\r\n',
    ],
)
def test_it_is_found_in_any_spelling_and_position(head: bytes, piece: int) -> None:
    before = form(FILE + b"\r\n--a \r\n--a" * 50, b"\r\nno headers", end=b"")
    name = "модель 'x'"
    scanner = scan(b"preamble\r\n" + before + form(head + name.encode(), FILE), piece)
    assert scanner.model is not None
    assert scanner.model.value == name
    assert scanner.is_complete


def test_the_position_of_the_name_is_reported() -> None:
    body = form(FILE, PLAIN + b"tiny")
    found = scan(body).model
    assert found is not None
    assert body[found.start : found.end] == b"tiny"


def test_a_complete_form_without_it_has_no_model() -> None:
    whole = form(FILE + PLAIN, b'Content-Disposition: form-data; name="models"\r\n\r\nx')
    assert (scan(whole).model, scan(whole).is_complete) == (None, True)
    assert not scan(whole[:-6]).is_complete


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (b'Content-Disposition: form-data; name="model"; filename="x"\r\n\r\na', "not a file"),
        (PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Type: text/plain; charset=utf-16\r\n\r\na"), "utf-16"),
        (PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\nYQ=="), "encoding"),
        (PLAIN + b"\xff", "UTF-8"),
        (PLAIN + b"x" * 5000, "1024 bytes"),
        (b"X: " + b"y" * 20_000, "16384 bytes"),
        (PLAIN + b"a\r\n--a b\r\n" + PLAIN + b"b", "more than once, as 'a' and as 'b'"),
    ],
)
def test_ambiguous_forms_are_refused(part: bytes, message: str) -> None:
    with pytest.raises(InvalidForm, match=message):
        scan(form(part), piece=100)


@pytest.mark.parametrize("content_type", [b"multipart/form-data", b"multipart/form-data; boundary="])
def test_a_form_needs_a_boundary(content_type: bytes) -> None:
    with pytest.raises(InvalidForm, match="boundary"):
        FormScanner(content_type)


def test_it_takes_linear_time_and_constant_memory() -> None:
    """A form of 40 MB of almost-boundaries."""
    piece = b"\r\n--a " * 10_000
    scanner = FormScanner(TYPE)
    tracemalloc.start()
    started = time.perf_counter()
    for _ in range(700):
        scanner.feed(piece)
    assert time.perf_counter() - started < 10
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
