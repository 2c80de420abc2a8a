"""Compressed bodies: decoded where Berth reads them, refused by coding or size; untouched below /proxy/."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.http.errors import RequestRefused
from api.server.content_coding import DecodingApp, decode
from tests.api.protocol_apps import Inner, ask
from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command

MB = 2**20
TEXT = b'{"model": "plain", "prompt": "' + b"x" * 5000 + b'"}'


def bare(data: bytes) -> bytes:
    """Deflate without zlib's header and checksum, as some clients send it."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


ENCODED = {
    "gzip": [gzip.compress(TEXT, mtime=0)],
    "x-gzip": [gzip.compress(TEXT, mtime=0)],
    "deflate": [zlib.compress(TEXT), bare(TEXT)],
}
PAIRS = [(coding, body) for coding, bodies in ENCODED.items() for body in bodies]
IDS = [f"{coding}-{number}" for coding, bodies in ENCODED.items() for number in range(len(bodies))]


@pytest.mark.parametrize(("coding", "body"), PAIRS, ids=IDS)
def test_encoded_bodies_are_decoded(coding: str, body: bytes) -> None:
    assert decode(coding, body, len(TEXT)) == TEXT
    with pytest.raises(RequestRefused) as refused:
        decode(coding, body, len(TEXT) - 1)
    assert refused.value.error.status == 413


@pytest.mark.parametrize(("coding", "body"), PAIRS, ids=IDS)
@pytest.mark.parametrize("change", ["cut", "more", "other", "plain"])
def test_broken_bodies_are_refused(coding: str, body: bytes, change: str) -> None:
    broken = {"cut": body[:-1], "more": body + b"x", "other": b"\x00\x07" * 20, "plain": TEXT}[change]
    with pytest.raises(RequestRefused) as refused:
        decode(coding, broken, MB)
    assert refused.value.error.status == 400
    assert coding in refused.value.error.message


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_uses_no_more_memory_than_the_limit(coding: str) -> None:
    wbits = {"gzip": 31, "deflate": 15}[coding]
    stream = zlib.compressobj(9, wbits=wbits)
    head, block = (stream.compress(bytes(MB)) + stream.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    bomb = head + 498 * block + stream.compress(bytes(MB)) + stream.flush()  # of 500 MB
    tracemalloc.start()
    with pytest.raises(RequestRefused):
        decode(coding, bomb, 4 * MB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * MB


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_at_the_limit_uses_its_memory_once(coding: str) -> None:
    wbits = {"gzip": 31, "deflate": 15}[coding]
    stream = zlib.compressobj(9, wbits=wbits)
    body = b"".join(stream.compress(bytes(MB)) for _ in range(64)) + stream.flush()
    tracemalloc.start()
    assert len(decode(coding, body, 64 * MB)) == 64 * MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.25 * 64 * MB


async def test_the_inner_application_gets_an_ordinary_request() -> None:
    inner = Inner([b"{}"])
    refused: list[tuple[str, int]] = []
    app = DecodingApp(inner, MB, lambda method, status: refused.append((method, status)))
    encoded = gzip.compress(TEXT)
    headers = [(b"content-encoding", b"GZip"), (b"transfer-encoding", b"chunked"), (b"x-own", b"1")]
    got = await ask(app, "/v1/completions", headers=headers, body_pieces=[encoded[:10], encoded[10:], b""])
    assert (got.status, inner.bodies) == (200, [TEXT])
    assert inner.scopes[0]["headers"] == [
        (b"host", b"localhost"),
        (b"x-own", b"1"),
        (b"content-length", b"%d" % len(TEXT)),
    ]
    for plain in (b"", b"identity", b"identity, "):
        await ask(app, "/v1/completions", TEXT, headers=[(b"content-encoding", plain)])
        assert inner.bodies[-1] == TEXT
    await ask(app, "/v1/x", b"", method="GET", headers=[(b"content-encoding", b"gzip")])
    assert (inner.bodies[-1], refused) == (b"", [])


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "deflate,br", "nonsense"])
async def test_an_unknown_coding_is_refused_by_name(coding: str) -> None:
    inner = Inner([b"{}"])
    refused: list[tuple[str, int]] = []
    app = DecodingApp(inner, MB, lambda method, status: refused.append((method, status)))
    headers = [(b"content-encoding", one.encode()) for one in coding.split(",")]
    got = await ask(app, "/v1/completions", b"xx", headers=headers)
    error = json.loads(got.body)["error"]
    assert (got.status, got.header(b"accept-encoding")) == (415, b"gzip, deflate")
    assert (error["param"], error["code"]) == ("Content-Encoding", "unsupported_content_encoding")
    assert coding.replace(",", ", ").replace("  ", " ") in error["message"]
    assert (inner.bodies, refused) == ([], [("POST", 415)])


# The whole of Berth.


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    folder: Path = tmp_path_factory.mktemp("coding")
    (folder / "models.yaml").write_text(json.dumps({"models": {"plain": {"command": command()}}}))
    settings = {"MODELS_FILE": str(folder / "models.yaml"), "MAX_BODY_MB": "2", "DEFAULT_MODEL": "plain"}
    with running_berth(folder, RESPONSE_CACHE_MB="1", ACCESS_LOG="true", **settings) as berth:
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    with berth.client() as client:
        yield client


def post(client: httpx.Client, path: str, body: Any, coding: str = "gzip", **more: str) -> httpx.Response:
    headers = {"content-encoding": coding, "content-type": "application/json", **more}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, content=gzip.compress(raw) if coding == "gzip" else raw, headers=headers)


def test_a_compressed_body_is_routed_by_its_model(client: httpx.Client) -> None:
    ask = {"model": "plain", "prompt": "a", "max_tokens": 2}
    for path in ("/v1/completions", "/completions", "/v1/chat/completions"):
        assert post(client, path, ask).json()["usage"]["completion_tokens"] == 2, path
    streamed = post(client, "/v1/completions", {**ask, "stream": True})
    assert streamed.text.endswith("data: [DONE]\n\n")
    sent = {"model": "plain", "input": "x"}
    seen = post(client, "/v1/embeddings", sent).json()
    assert json.loads(seen["body"]) == {**sent, "model": client.get("/models/plain").json()["model"]}
    assert "token0" in post(client, "/generate", {"prompt": "a"}).text


def test_a_compressed_form_is_routed_by_its_model(client: httpx.Client) -> None:
    form = httpx.Request("POST", "http://x", data={"model": "plain"}, files={"file": b"x" * 300_000})
    answer = post(
        client, "/v1/audio/transcriptions", form.read(), **{"content-type": form.headers["content-type"]}
    )
    assert answer.json()["bytes"] > 300_000


def test_it_has_the_same_cache_entry_as_the_plain_body(client: httpx.Client) -> None:
    ask = {"model": "plain", "prompt": "cached", "temperature": 0, "max_tokens": 1}
    client.post("/v1/completions", json=ask)
    assert post(client, "/v1/completions", ask).headers["x-berth-cache"] == "hit"


def test_control_routes_accept_it_too(client: httpx.Client) -> None:
    spec = {"name": "packed", "model_name": "packed", "engine": "command", "command": command()}
    assert post(client, "/instances?wait=60", spec).status_code == 201
    raw = gzip.compress(b'{"timeout": 77}')
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    patched = client.patch("/instances/packed", content=raw, headers=headers)
    assert patched.json()["timeout"] == 77
    assert client.delete("/instances/packed").status_code == 204


@pytest.mark.parametrize("path", ["/v1/completions", "/instances", "/generate", "/v1/messages"])
def test_an_undecodable_body_is_reported(client: httpx.Client, berth: BerthProcess, path: str) -> None:
    unknown = post(client, path, b"xx", "br")
    assert (unknown.status_code, "br" in unknown.json()["error"]["message"]) == (415, True)
    assert unknown.headers["accept-encoding"] == "gzip, deflate"
    assert len(unknown.headers.get_list("x-request-id")) == 1
    berth.wait_for_line("415", unknown.headers["x-request-id"])
    broken = post(client, path, b"{}", "deflate")
    assert (broken.status_code, "not valid deflate" in broken.json()["error"]["message"]) == (400, True)
    bomb = post(client, path, bytes(3 * MB))
    assert (bomb.status_code, "the decoded body exceeds" in bomb.json()["error"]["message"]) == (413, True)
    assert ("type" in bomb.json()) is (path == "/v1/messages")


def test_below_proxy_it_passes_unchanged(client: httpx.Client) -> None:
    spec = {"name": "a", "model_name": "a", "engine": "command", "command": command()}
    client.post("/instances?wait=60", json=spec).raise_for_status()
    raw = gzip.compress(TEXT)
    assert post(client, "/proxy/a/v1/x", TEXT).json()["bytes"] == len(raw)
    assert post(client, "/proxy/a/headers", TEXT).json()["content-encoding"] == "gzip"
    assert post(client, "/proxy/a/headers", b"xx", "br").json()["content-encoding"] == "br"
