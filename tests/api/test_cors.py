"""Pages of other origins: those in ALLOWED_ORIGINS can use Berth, all others get nothing more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.access.key_store import Keys
from api.auth import AccessControl
from api.cors import Cors, Origins
from api.http.asgi import RawHeaders
from api.http.response_channel import FastPathApp
from api.http.route import RoutedApp
from tests.api.test_auth import HOST, LOCAL, REMOTE, Yes
from tests.api.upstreams import LOOPS, Wire, berth, request, response, upstream
from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command

NO_KEYS = Keys()
PAGE, OTHER = "https://app.example.com", "https://evil.example"


@pytest.fixture(params=LOOPS, ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize(
    ("allowed", "origin", "expected"),
    [
        ("https://a.example", "https://a.example", True),
        ("https://a.example", "https://A.example", True),
        ("https://a.example", "http://a.example", False),
        ("https://a.example", "https://a.example:8443", False),
        ("https://a.example", "https://a.example.evil", False),
        ("https://a.example", "https://aXexample", False),
        ("https://a.example", "null", False),
        ("http://localhost:*", "http://localhost:3000", True),
        ("http://localhost:*", "http://localhost", True),
        ("http://localhost:*", "http://localhost:3000.evil.example", False),
        ("http://[::1]:*", "http://[::1]:3000", True),
        ("https://*.example.com", "https://a.b.example.com", True),
        ("https://*.example.com", "https://example.com", False),
        ("https://*.example.com", "https://example.com.evil", False),
        ("https://*.example.com", "https://evil.example/.example.com", False),
        ("https://*.example.com", "https://x@.example.com", False),
        ("http://*:3000", "http://any.thing:3000", True),
        ("http://*:3000", "http://any.thing:3001", False),
        ("chrome-extension://*", "chrome-extension://abcdef", True),
        ("chrome-extension://*", "https://abcdef", False),
        ("*", "https://whatever", True),
        ("*", "null", True),
        ("*", "", False),
    ],
)
def test_which_origins_are_allowed(allowed: str, origin: str, expected: bool) -> None:
    assert Origins([allowed]).allow(origin.encode()) is expected
    assert Origins(["https://first.example", allowed]).allow(origin.encode()) is expected


# By the wire, in front of the data plane.


def allowing(*allowed: str) -> Any:
    def behind(app: RoutedApp) -> FastPathApp:
        return Cors(app, Origins(allowed))

    return behind


async def opinionated(wire: Wire) -> None:
    """An engine with its own CORS headers, like vLLM."""
    own = ("Access-Control-Allow-Origin: *", "Access-Control-Allow-Credentials: true", "Vary: Accept")
    while True:
        head, _ = await wire.read_message()
        if b"stream" not in head.line:
            await wire.send(response(b"ok", *own))
            continue
        lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked", *own]
        await wire.send("\r\n".join([*lines, "", ""]).encode())
        await asyncio.sleep(0.01)
        await wire.send(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("target", ["/proxy/one/x", "/proxy/one/stream", "/proxy/none/x", "/control"])
async def test_responses_are_readable_only_for_allowed_pages(target: str) -> None:
    async with upstream(opinionated) as engine, berth(engine, behind=allowing(PAGE)) as front:
        wire = await front.connect()
        for _ in range(3):  # the second's head is known
            await wire.send(request(target, f"Origin: {PAGE}", method="POST", body=b"{}"))
            head, _ = await wire.read_message()
            assert head.all(b"access-control-allow-origin") == [PAGE.encode()]
            assert b"x-request-id" in (head.get(b"access-control-expose-headers") or b"")
            assert head.get(b"access-control-allow-credentials") is None
            assert b"origin" in head.all(b"vary")
        for origin in ("Origin: " + OTHER, "Origin: null"):
            for _ in range(2):
                await wire.send(request(target, origin, method="POST", body=b"{}"))
                head, _ = await wire.read_message()
                assert not [name for name, _ in head.headers if name.startswith(b"access-control-")]
                assert b"origin" in head.all(b"vary")
        await wire.close()


async def test_requests_without_an_origin_are_left_alone() -> None:
    async with upstream(opinionated) as engine, berth(engine, behind=allowing(PAGE)) as front:
        for _ in range(2):
            head, _ = await front.ask(request())
            assert head.all(b"access-control-allow-origin") == [b"*"]
            assert head.all(b"vary") == [b"Accept"]


async def test_with_a_star_the_response_has_a_star() -> None:
    async with upstream(opinionated) as engine, berth(engine, behind=allowing("*")) as front:
        head, _ = await front.ask(request("/proxy/one/x", "Origin: " + OTHER))
    assert head.all(b"access-control-allow-origin") == [b"*"]
    assert head.all(b"vary") == [b"Accept"]


async def test_without_the_setting_an_engines_own_headers_pass() -> None:
    async with upstream(opinionated) as engine, berth(engine) as front:
        head, _ = await front.ask(request("/proxy/one/x", "Origin: " + OTHER))
    assert head.all(b"access-control-allow-origin") == [b"*"]


# Access without a key.


def may_begin(
    origins: Origins | None, path: str, headers: RawHeaders, client: Any = LOCAL, keys: Keys = NO_KEYS
) -> bool:
    scope = {"type": "http", "path": path, "headers": headers, "client": client}
    return AccessControl(Yes(), keys, origins=origins).begin(scope, b"", None, None)  # type: ignore[arg-type]


def test_an_allowed_page_may_use_models_without_a_key_and_nothing_else() -> None:
    named, page = Origins([PAGE]), [HOST, (b"origin", PAGE.encode())]
    assert may_begin(named, "/v1/completions", page)
    assert may_begin(named, "/proxy/a/v1/completions", page)
    for path in ("/instances", "/metrics", "/proxy/a/sleep"):
        assert not may_begin(named, path, page), path
    assert may_begin(Origins(["*"]), "/v1/completions", [HOST, (b"origin", OTHER.encode())])
    assert not may_begin(Origins(["*"]), "/instances", [HOST, (b"origin", OTHER.encode())])


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ([HOST, (b"origin", OTHER.encode())], LOCAL),
        ([(b"host", b"rebound.example"), (b"origin", PAGE.encode())], LOCAL),
        ([HOST, (b"origin", PAGE.encode()), (b"x-forwarded-for", b"127.0.0.1")], LOCAL),
        ([HOST, (b"origin", PAGE.encode())], REMOTE),
        ([HOST, (b"origin", PAGE.encode()), (b"origin", OTHER.encode())], LOCAL),
    ],
)
def test_other_rules_are_as_strict_as_before(headers: RawHeaders, client: Any) -> None:
    named = Origins([PAGE])
    assert not may_begin(named, "/v1/completions", headers, client)
    assert not may_begin(None, "/v1/completions", [HOST, (b"origin", PAGE.encode())])


def test_with_keys_a_page_needs_one() -> None:
    page = [HOST, (b"origin", PAGE.encode())]
    keys = Keys(inference=("user-key",))
    assert not may_begin(Origins(["*"]), "/v1/completions", page, keys=keys)
    assert may_begin(Origins(["*"]), "/v1/completions", [*page, (b"x-api-key", b"user-key")], keys=keys)


# The whole of Berth.


@pytest.fixture(scope="module")
def whole_berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    folder: Path = tmp_path_factory.mktemp("cors")
    models = {"plain": {"command": command()}, "slow": {"command": command("--slow-start", "0.5")}}
    (folder / "models.yaml").write_text(json.dumps({"models": models}))
    settings = {
        "MODELS_FILE": str(folder / "models.yaml"),
        "API_KEYS": "user-key",
        "ADMIN_API_KEYS": "admin-key",
        "ALLOWED_ORIGINS": f"{PAGE}, http://localhost:*",
        "MAX_BODY_MB": "1",
        "STREAM_KEEPALIVE": "0.1",
        "ACCESS_LOG": "true",
    }
    with running_berth(folder, **settings) as berth:
        yield berth


@pytest.fixture
def client(whole_berth: BerthProcess) -> Iterator[httpx.Client]:
    with whole_berth.client() as client:
        yield client


def preflight(client: httpx.Client, path: str, origin: str = PAGE, method: str = "POST") -> httpx.Response:
    asked = {
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,x-api-key",
    }
    return client.options(path, headers={"Origin": origin, **asked})


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/proxy/a/v1/x", "/instances/a", "/health", "/nothing"]
)
def test_a_preflight_needs_no_key(client: httpx.Client, whole_berth: BerthProcess, path: str) -> None:
    answer = preflight(client, path, method="DELETE")
    assert (answer.status_code, answer.content) == (204, b"")
    headers = answer.headers
    assert headers["access-control-allow-origin"] == PAGE
    assert "DELETE" in headers["access-control-allow-methods"].split(", ")
    assert headers["access-control-allow-headers"] == "authorization,x-api-key"
    assert int(headers["access-control-max-age"]) > 0
    assert "origin" in headers["vary"]
    whole_berth.wait_for_line(headers["x-request-id"])


def test_a_preflight_of_another_page_is_refused(client: httpx.Client) -> None:
    answer = preflight(client, "/v1/chat/completions", OTHER)
    assert answer.status_code == 401
    assert "access-control-allow-origin" not in answer.headers
    assert client.options("/v1/chat/completions", headers={"Origin": PAGE}).status_code == 401, "no preflight"


def test_private_network_access_is_granted_in_the_preflight(client: httpx.Client) -> None:
    headers = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Private-Network": "true",
    }
    answer = client.options("/v1/models", headers=headers)
    assert answer.headers["access-control-allow-private-network"] == "true"


def of_page(answer: httpx.Response) -> int:
    """The status of a response, asserting that a page can read it."""
    assert answer.headers.get_list("access-control-allow-origin") == [PAGE]
    assert answer.headers.get_list("x-request-id")
    return answer.status_code


def test_responses_errors_and_streams_are_readable(client: httpx.Client) -> None:
    page = {"Origin": PAGE}
    known = {**page, "Authorization": "Bearer user-key"}
    ask = {"model": "plain", "prompt": "a", "max_tokens": 2}
    assert of_page(client.get("/health", headers=page)) == 200
    assert of_page(client.get("/v1/models", headers=known)) == 200
    assert of_page(client.get("/v1/models", headers=page)) == 401
    assert of_page(client.get("/instances", headers=known)) == 403
    assert of_page(client.get("/nothing", headers={**page, "x-api-key": "admin-key"})) == 404
    assert of_page(client.post("/v1/completions", json={**ask, "model": "none"}, headers=known)) == 404
    for _ in range(3):
        assert of_page(client.post("/v1/completions", json=ask, headers=known)) == 200
        assert of_page(client.post("/v1/completions", json={**ask, "stream": True}, headers=known)) == 200
    assert of_page(client.post("/generate", json={"prompt": "a", "model": "plain"}, headers=known)) == 200
    long = b"x" * (2**20 + 1)
    assert of_page(client.post("/v1/completions", content=long, headers=known)) == 413


def test_waiting_streams_and_events_are_readable(client: httpx.Client) -> None:
    headers = {"Origin": PAGE, "Authorization": "Bearer admin-key"}
    body = {"model": "slow", "prompt": "a", "stream": True}
    with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        assert of_page(answer) == 200
        assert answer.read().startswith(b": waiting")
    with client.stream("GET", "/events", headers=headers) as answer:
        assert of_page(answer) == 200


def test_another_page_can_read_nothing(client: httpx.Client) -> None:
    answer = client.get("/health", headers={"Origin": OTHER})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    assert "origin" in answer.headers["vary"]


def test_by_default_no_page_can(tmp_path: Path) -> None:
    with running_berth(tmp_path, API_KEYS="user-key", ADMIN_API_KEYS="k") as berth, berth.client() as client:
        assert preflight(client, "/v1/chat/completions", "http://localhost:3000").status_code == 401
        answer = client.get("/health", headers={"Origin": "http://localhost:3000"})
        assert not [name for name in answer.headers if name.startswith("access-control") or name == "vary"]
