"""Paths in logs: never a query, never a secret's value."""

from __future__ import annotations

import logging

import pytest

from api.http.log_paths import loggable
from tests.api.upstreams import Wire, berth, request, upstream


@pytest.mark.parametrize(
    ("target", "logged"),
    [
        (b"/proxy/a/v1/x?api_key=S", "/proxy/a/v1/x"),
        (b"/proxy/a/v1/x#api_key=S", "/proxy/a/v1/x"),
        (b"/proxy/a/x;api_key=S/y", "/proxy/a/x;api_key=***/y"),
        (b"/proxy/a/x;Api-Key=S;b=c", "/proxy/a/x;Api-Key=***;b=c"),
        (b"/proxy/a/x%3Faccess_token%3DS%26b=c", "/proxy/a/x%3Faccess_token%3D***%26b=c"),
        (b"/proxy/a/password=S%2Fx", "/proxy/a/password=***%2Fx"),
        (b"/proxy/a/max_tokens=5/x%0Ay", "/proxy/a/max_tokens=5/x%0Ay"),
        (b"/proxy/a/\xff", "/proxy/a/\\xff"),
    ],
)
def test_a_path_is_logged_without_secrets(target: bytes, logged: str) -> None:
    assert loggable(target) == logged


async def test_a_failure_is_logged_without_the_query(caplog: pytest.LogCaptureFixture) -> None:
    async def hang_up(wire: Wire) -> None:
        await wire.read_head()

    async with upstream(hang_up) as engine, berth(engine) as front:
        with caplog.at_level(logging.DEBUG):
            head, _ = await front.ask(request("/proxy/one/x;key=S1?api_key=S2", method="POST", body=b"x"))
    assert head.status == 502
    assert "instance one" in caplog.text
    assert "/x;key=***" in caplog.text
    assert "S1" not in caplog.text and "S2" not in caplog.text
