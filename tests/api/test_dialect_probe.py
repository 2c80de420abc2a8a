"""Whether an engine has an API: asked once per process, by an empty request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from instance_manager.backends import BACKENDS
from instance_manager.lifecycle.dialect_probe import speaks
from instance_manager.types import Endpoint
from tests.api.upstreams import Wire, upstream

PATH = "/v1/messages"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, {}, True),
        (400, {"error": {"message": "messages is required"}}, True),
        (401, {}, True),
        (422, {"detail": []}, True),
        (500, {}, True),
        (404, {"detail": "Not Found"}, False),
        (404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, False),
        (404, {"error": {"message": "no such model", "param": "model"}}, True),
        (404, {"error": {"message": "no such model", "code": "model_not_found"}}, True),
        (404, [], False),
        (405, {}, False),
        (501, {}, False),
    ],
)
async def test_what_a_status_says(status: int, body: Any, expected: bool) -> None:
    asked: list[bytes] = []

    async def script(wire: Wire) -> None:
        head, _ = await wire.read_message()
        asked.append(head.line)
        raw = json.dumps(body).encode()
        await wire.send(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(raw)), raw)

    async with upstream(script) as engine:
        assert [await speaks(engine.endpoint, PATH) for _ in range(3)] == [expected] * 3
    assert asked == [b"POST /v1/messages HTTP/1.1"]


async def test_an_engine_that_can_not_be_asked_gets_the_request_itself() -> None:
    endpoint = Endpoint("127.0.0.1", 1, "", 1)
    assert await speaks(endpoint, PATH) is True
    assert endpoint.speaks == {}


def test_what_is_known_of_a_kind_is_not_asked() -> None:
    assert {PATH, "/v1/responses", "/v1/chat/completions"} <= BACKENDS["engine"].speaks
    assert "/v1/chat/completions" in BACKENDS["vllm"].speaks and PATH not in BACKENDS["vllm"].speaks
    assert BACKENDS["command"].speaks == frozenset()
    assert BACKENDS["llama"].translated == BACKENDS["engine"].speaks - BACKENDS["llama"].speaks
