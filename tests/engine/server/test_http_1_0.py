"""HTTP/1.0 clients of the engine's server get no chunked encoding."""

from __future__ import annotations

import json
import socket

import pytest

from tests.engine.server.serving import Running


def ask(server: Running, head: str, body: bytes = b"") -> tuple[dict[str, str], bytes]:
    """Headers (names in lower case) and body, read until the connection ends."""
    length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(f"{head} HTTP/1.0\r\n{length}\r\n".encode() + body)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    raw, _, rest = answer.partition(b"\r\n\r\n")
    pairs = (line.split(": ", 1) for line in raw.decode().split("\r\n")[1:])
    return {name.lower(): value for name, value in pairs}, rest


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_a_stream_has_no_chunks_and_ends_with_its_connection(fake_server: Running, path: str) -> None:
    asked = {
        "/v1/completions": {"prompt": "a", "max_tokens": 3},
        "/v1/responses": {"input": "a", "max_output_tokens": 16},
    }
    messages = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
    body = {"model": "fake", "stream": True, **asked.get(path, messages)}
    headers, stream = ask(fake_server, f"POST {path}", json.dumps(body).encode())
    assert "transfer-encoding" not in headers and headers["connection"] == "close"
    assert stream.startswith((b"data: ", b"event: ")) and stream.endswith(b"\n\n")


def test_a_response_with_a_length_keeps_it(fake_server: Running) -> None:
    for path in ("/health", "/v1/models", "/nothing"):
        headers, body = ask(fake_server, f"GET {path}")
        assert int(headers["content-length"]) == len(body)
    headers, body = ask(fake_server, "HEAD /v1/models")
    assert int(headers["content-length"]) > 0 and body == b""
