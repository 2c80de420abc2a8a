"""Compressed bodies, which /proxy/ forwards unchanged to the engine's server."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.server.protocol.limits import MAX_BODY_BYTES
from tests.engine.server.in_process import COMPLETIONS, App, app_in_process

BODY = json.dumps({"prompt": "a"}).encode()


@pytest.fixture(scope="module")
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model) as app:
        yield app


def bare(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


async def post(app: App, body: bytes, coding: str, path: str = COMPLETIONS) -> tuple[int, str]:
    """The status and the error message."""
    headers = {"content-encoding": coding, "content-type": "application/json"}
    answer = await app.http.post(path, content=body, headers=headers)
    return answer.status_code, answer.json().get("error", {}).get("message", "")


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("X-GZIP", gzip.compress(BODY, mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", bare(BODY)),
        ("identity", BODY),
    ],
)
async def test_a_compressed_body_is_read_like_a_plain_one(app: App, coding: str, body: bytes) -> None:
    assert await post(app, body, coding) == (200, "")
    assert (await post(app, body, coding, "/tokenize"))[0] == 200


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip"])
async def test_an_unsupported_coding_is_refused_by_name(app: App, coding: str) -> None:
    status, message = await post(app, b"xx", coding)
    assert status == 415 and coding in message


async def test_broken_and_oversized_bodies_are_refused(app: App) -> None:
    for broken in (BODY, gzip.compress(BODY, mtime=0)[:-1], gzip.compress(BODY) + b"x"):
        status, message = await post(app, broken, "gzip")
        assert status == 400 and "gzip" in message
    bomb = gzip.compress(bytes(MAX_BODY_BYTES + 1), 1)
    status, message = await post(app, bomb, "gzip")
    assert status == 413 and str(MAX_BODY_BYTES) in message


async def test_head_is_answered_wherever_there_is_a_get(app: App) -> None:
    for path in ("/health", "/v1/models", "/version", "/metrics", "/docs", "/openapi.json", "/load", "/ping"):
        got, looked_at = await app.http.get(path), await app.http.head(path)
        assert looked_at.status_code == got.status_code == 200, path
        assert set(looked_at.headers) == set(got.headers), path
