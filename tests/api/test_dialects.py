"""Errors of Berth itself in the format of the requested API: Anthropic's below /v1/messages."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from api.http.dialects import anthropic_type, error_event, in_dialect, speaks_anthropic
from api.http.errors import api_error
from engine.server.http.errors import _ANTHROPIC_TYPES
from instance_manager.errors import QueueFull
from tests.api.upstreams import StubLeases, Wire, berth, request, response, upstream
from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command

MESSAGES = {"max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def anyio_backend() -> Any:
    return ("asyncio", {"use_uvloop": True})


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/v1/messages", True),
        (b"/v1/messages?beta=true", True),
        (b"/v1/messages/count_tokens", True),
        (b"/v1/messages/batches", True),
        (b"/proxy/a/v1/messages", True),
        (b"/proxy/a%20b/v1/messages/count_tokens?x", True),
        (b"/v1/messagess", False),
        (b"/v1/responses", False),
        (b"/proxy/v1/messages", False),
        (b"/proxy/a/b/v1/messages", False),
        (b"/x?y=/v1/messages", False),
        (b"", False),
    ],
)
def test_the_path_determines_the_dialect(target: bytes, expected: bool) -> None:
    assert speaks_anthropic(target) is expected


def test_an_error_has_the_same_type_in_berth_and_in_the_engine() -> None:
    for status in (400, 401, 404, 405, 413, 415, 429, 500, 503):
        assert anthropic_type(status) == _ANTHROPIC_TYPES.get(status, "invalid_request_error"), status  # type: ignore[call-overload]
    assert {anthropic_type(status) for status in (400, 405, 408, 409, 415, 422, 431)} == {
        "invalid_request_error"
    }
    assert (anthropic_type(502), anthropic_type(504)) == ("api_error", "timeout_error")


def test_errors_of_openais_api_are_unchanged() -> None:
    error = api_error(404, "none", "not_found_error")
    assert in_dialect(error, b"/v1/completions", b"r") is error
    assert error_event(b'{"a":\n1}', b"/v1/completions") == b'data: {"a": 1}\n\n'


def read(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, type and message of an error in Anthropic's format."""
    body = answer.json()
    check(body, answer.headers["x-request-id"])
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    return answer.status_code, body["error"]["type"], body["error"]["message"]


def check(body: dict[str, Any], request_id: str) -> None:
    assert body.keys() == {"type", "error", "request_id"}
    assert body["error"].keys() == {"type", "message"}
    assert (body["type"], body["request_id"]) == ("error", request_id)


# The data plane with a failing engine.


async def test_a_broken_stream_ends_with_anthropics_event() -> None:
    event = b'event: ping\ndata: {"type": "ping"}\n\n'

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await wire.send(b"%x\r\n%b\r\n" % (len(event), event))

    async with upstream(script) as engine, berth(engine) as front:
        for target, name in (("/proxy/one/v1/messages", b"event: error\n"), ("/proxy/one/v1/responses", b"")):
            wire = await front.connect()
            await wire.send(request(target, "X-Request-Id: r1", method="POST", body=b"{}"))
            await wire.read_head()
            assert await wire.read_chunk() == event
            last = await wire.read_chunk()
            assert last.startswith(name + b"data: {") and last.endswith(b"}\n\n")
            error_event = json.loads(last.removeprefix(name).removeprefix(b"data: "))
            if name:
                check(error_event, "r1")
                assert error_event["error"]["type"] == "api_error"
            else:
                assert error_event["error"]["code"] == "engine_disconnected"
            with pytest.raises(asyncio.IncompleteReadError):
                await wire.read_chunk()
            await wire.close()


async def test_a_broken_engine_and_a_full_queue() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_message()

    async with upstream(script) as engine:
        leases = StubLeases(one=engine.endpoint)
        async with berth(leases) as front:
            target = "/proxy/one/v1/messages/count_tokens"
            head, body = await front.ask(request(target, "X-Request-Id: r1", method="POST", body=b"{}"))
            check(json.loads(body), "r1")
            assert (head.status, json.loads(body)["error"]["type"]) == (502, "api_error")
            leases.refusal = QueueFull("256 wait already")
            head, body = await front.ask(request(target, "X-Request-Id: r1", method="POST", body=b"{}"))
            check(json.loads(body), "r1")
            assert (head.status, json.loads(body)["error"]["type"]) == (429, "rate_limit_error")
            assert head.get(b"retry-after") == b"1"
            assert head.all(b"request-id") == [b"r1"]


async def test_an_engines_own_error_is_passed_on_unchanged() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(response(b'{"detail": "Not Found"}', status="404 Not Found"))

    async with upstream(script) as engine, berth(engine) as front:
        head, body = await front.ask(request("/proxy/one/v1/messages", method="POST", body=b"{}"))
    assert (head.status, body) == (404, b'{"detail": "Not Found"}')


# The whole of Berth.


@pytest.fixture(scope="module")
def whole_berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    folder: Path = tmp_path_factory.mktemp("dialects")
    doom = "import sys, time; time.sleep(0.5); sys.exit('CUDA out of memory')"
    models = {
        "plain": {"command": command()},
        "broken": {"command": command("--fail-with", "CUDA out of memory")},
        "doomed": {"command": [sys.executable, "-c", doom, "{port}"]},
    }
    (folder / "models.yaml").write_text(json.dumps({"models": models}))
    keys = folder / "keys"
    keys.write_text("narrow: narrow-key models=other\nslow: slow-key rate=1/h burst=1\n")
    keys.chmod(0o600)
    settings = {
        "MODELS_FILE": str(folder / "models.yaml"),
        "API_KEYS_FILE": str(keys),
        "API_KEYS": "user-key",
        "ADMIN_API_KEYS": "admin-key",
        "MAX_BODY_MB": "1",
        "STREAM_KEEPALIVE": "0.1",
    }
    with running_berth(folder, **settings) as berth:
        yield berth


def client_of(berth: BerthProcess, key: str) -> httpx.Client:
    return httpx.Client(base_url=berth.url, headers={"x-api-key": key}, trust_env=False, timeout=60)


@pytest.fixture
def user(whole_berth: BerthProcess) -> Iterator[httpx.Client]:
    with client_of(whole_berth, "user-key") as client:
        yield client


def ask(client: httpx.Client, model: str, path: str = "/v1/messages", **fields: Any) -> httpx.Response:
    return client.post(path, json={"model": model, **MESSAGES, **fields})


def test_an_unknown_model_or_instance(user: httpx.Client) -> None:
    for path in ("/v1/messages", "/v1/messages?beta=true", "/v1/messages/count_tokens"):
        status, kind, message = read(ask(user, "nobody", path))
        assert (status, kind) == (404, "not_found_error") and "nobody" in message
    status, kind, _ = read(ask(user, "x", "/proxy/nobody/v1/messages"))
    assert (status, kind) == (404, "not_found_error")


def test_invalid_bodies(user: httpx.Client) -> None:
    for body in (b"{", b"[]", b'{"model": 3}', b"{}"):
        status, kind, _ = read(user.post("/v1/messages", content=body))
        assert (status, kind) == (400, "invalid_request_error"), body
    long = b'{"model": "plain", "x": "' + b"x" * 2**20 + b'"}'
    for path in ("/v1/messages", "/proxy/a/v1/messages"):
        status, kind, message = read(user.post(path, content=long))
        assert (status, kind) == (413, "request_too_large") and "MAX_BODY_MB" in message


def test_a_wrong_key_a_key_for_other_models_and_a_rate_limited_key(whole_berth: BerthProcess) -> None:
    with client_of(whole_berth, "wrong") as stranger:
        for path in ("/v1/messages", "/proxy/a/v1/messages", "/v1/messages/count_tokens"):
            assert read(ask(stranger, "plain", path))[:2] == (401, "authentication_error")
    with client_of(whole_berth, "narrow-key") as narrow:
        assert read(ask(narrow, "plain"))[:2] == (403, "permission_error")
        assert read(ask(narrow, "plain", "/proxy/a/v1/messages"))[:2] == (403, "permission_error")
    with client_of(whole_berth, "slow-key") as slow:
        ask(slow, "nobody")
        answer = ask(slow, "nobody")
        assert read(answer)[:2] == (429, "rate_limit_error")
        assert int(answer.headers["retry-after"]) > 1


def test_a_failed_start(user: httpx.Client) -> None:
    status, kind, message = read(ask(user, "broken"))
    assert (status, kind) == (503, "overloaded_error") and "out_of_memory" in message


def test_a_failed_start_of_a_stream_that_waited(user: httpx.Client) -> None:
    with user.stream("POST", "/v1/messages", json={"model": "doomed", "stream": True, **MESSAGES}) as answer:
        text = answer.read().decode()
        assert answer.status_code == 200
    _, _, event = text.rpartition('event: ping\ndata: {"type": "ping"}\n\n')
    name, data, end = event.split("\n", 2)
    assert (name, end) == ("event: error", "\n")
    event = json.loads(data.removeprefix("data: "))
    check(event, answer.headers["x-request-id"])
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "out_of_memory" in event["error"]["message"]


def test_anthropics_client_understands_the_errors(whole_berth: BerthProcess) -> None:
    def client(key: str) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=whole_berth.url, api_key=key, max_retries=0)

    ask: dict[str, Any] = {"max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}
    with client("user-key") as known, client("wrong") as unknown:
        with pytest.raises(anthropic.NotFoundError) as missing:
            known.messages.create(model="nobody", **ask)
        assert missing.value.type == "not_found_error"
        assert missing.value.request_id == missing.value.response.headers["x-request-id"]
        with pytest.raises(anthropic.AuthenticationError):
            unknown.messages.create(model="nobody", **ask)
        with (
            pytest.raises(anthropic.APIStatusError, match="out_of_memory"),
            known.messages.stream(model="doomed", **ask) as stream,
        ):
            stream.until_done()


def test_other_paths_keep_openais_envelope(user: httpx.Client) -> None:
    error = ask(user, "nobody", "/v1/chat/completions").json()
    assert error.keys() == {"error"} and error["error"]["code"] == "model_not_found"
