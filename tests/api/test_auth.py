"""Access control: the policy on scopes, then a real Berth with keys."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from api.access.engine_routes import RequestRoutes
from api.access.key_store import Keys
from api.access.keys import Access
from api.auth import AccessControl, is_local, required_access
from api.cors import Origins
from api.http.asgi import RawHeaders, Receive, Scope, Send
from api.http.response_channel import Handler
from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command

LOCAL = ("127.0.0.1", 50000)
REMOTE = ("192.0.2.7", 50000)
HOST = (b"host", b"localhost:5000")


class Yes:
    """An application that responds with 200 to permitted requests."""

    def route(self, _: Scope) -> Handler:
        return Handler(respond, lambda *_: True)


async def respond(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def ask(
    keys: Keys,
    path: str,
    *,
    client: tuple[str, int] | None = LOCAL,
    headers: RawHeaders | None = None,
    kind: str = "http",
    method: str = "POST",
    more: tuple[str, ...] = (),
    subprotocols: tuple[str, ...] = (),
    origins: Origins | None = None,
) -> tuple[int, dict[str, Any]]:
    """Status and body of the response; 200 and {} for a permitted request."""

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Scope = {"type": kind, "path": path, "headers": [HOST, *(headers or [])], "client": client}
    if kind == "http":
        scope["method"] = method
    else:
        scope["subprotocols"] = list(subprotocols)
    await AccessControl(Yes(), keys, request_routes=RequestRoutes(more), origins=origins)(
        scope, receive, send
    )
    return sent[0].get("status", sent[0].get("code")), json.loads(sent[-1].get("body", b"{}") or b"{}")


def bearer(key: str) -> RawHeaders:
    return [(b"authorization", b"Bearer " + key.encode())]


BOTH = Keys(inference=("user-key",), admin=("admin-key", "other-admin"))


def test_the_fast_path_has_the_same_access_control() -> None:
    def may_begin(headers: RawHeaders) -> bool:
        scope = {"type": "http", "path": "/proxy/a/score", "headers": [HOST, *headers], "client": LOCAL}
        channel: Any = None
        return AccessControl(Yes(), BOTH).begin(scope, b"", channel, lambda _app: None)

    assert may_begin(bearer("user-key"))
    assert not may_begin(bearer("user-ke"))
    assert not may_begin([])


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/health", [], 200),
        ("/health/readiness", [], 200),
        ("/healthy", [], 401),
        ("/proxy/a/v1/chat/completions", [], 401),
        ("/proxy/a/v1/chat/completions", bearer("user-key"), 200),
        ("/proxy/a/v1/chat/completions", bearer("admin-key"), 200),
        ("/proxy/a/v1/chat/completions", bearer("user-ke"), 401),
        ("/proxy/a/v1/chat/completions", bearer(""), 401),
        ("/proxy/a/v1/chat/completions", [(b"authorization", b"Basic user-key")], 401),
        ("/instances", bearer("user-key"), 403),
        ("/instances", bearer("other-admin"), 200),
        ("/metrics", bearer("user-key"), 403),
        ("/instances", bearer("kl\u00fc"), 401),
        ("/v1/messages", [(b"x-api-key", b"user-key")], 200),
        ("/v1/messages", [(b"x-api-key", b" user-key ")], 200),
        ("/v1/messages", [(b"x-api-key", b"user-ke")], 401),
        ("/v1/messages", [(b"x-api-key", b"Bearer user-key")], 401),
        ("/v1/messages", [(b"x-api-key", b"")], 401),
        ("/instances", [(b"x-api-key", b"user-key")], 403),
        ("/instances", [(b"x-api-key", b"admin-key")], 200),
        ("/v1/responses", [(b"api-key", b"user-key")], 200),  # Azure's clients
        ("/v1/responses", [(b"api-key", b"user-ke")], 401),
        # Clients that were given one key and send a dummy, too, or two that differ.
        ("/v1/responses", [*bearer("unused"), (b"x-api-key", b"user-key")], 200),
        ("/v1/responses", [*bearer("user-key"), (b"x-api-key", b"unused")], 200),
        ("/v1/responses", [*bearer("unused"), (b"x-api-key", b"unused")], 401),
        ("/instances", [*bearer("user-key"), (b"x-api-key", b"admin-key")], 200),
        ("/v1/responses", [(b"x-api-key", b"unused"), (b"x-api-key", b"user-key")], 401),  # the first counts
    ],
)
async def test_keys_grant_their_access(path: str, headers: RawHeaders, status: int) -> None:
    assert (await ask(BOTH, path, headers=headers))[0] == status


async def test_without_keys_only_this_machine_has_access() -> None:
    assert (await ask(Keys(), "/instances"))[0] == 200
    status, body = await ask(Keys(), "/instances", client=REMOTE)
    assert status == 403
    assert "API_KEYS" in body["error"]["message"]
    assert body["error"]["code"] == "no_api_keys_set"


async def test_without_admin_keys_this_machine_is_admin() -> None:
    keys = Keys(inference=("user-key",))
    assert (await ask(keys, "/instances"))[0] == 200
    assert (await ask(keys, "/instances", client=REMOTE))[0] == 401
    assert (await ask(keys, "/instances", client=REMOTE, headers=bearer("user-key")))[0] == 403
    assert (await ask(keys, "/proxy/a/score", client=REMOTE, headers=bearer("user-key")))[0] == 200


async def test_with_admin_keys_this_machine_needs_one_too() -> None:
    assert (await ask(Keys(admin=("admin-key",)), "/instances"))[0] == 401


async def test_a_websocket_without_a_key_is_refused() -> None:
    status, _ = await ask(BOTH, "/proxy/a/v1/realtime", kind="websocket")
    assert status == 1008


async def test_a_websockets_key_may_be_in_any_of_the_headers() -> None:
    for headers in (bearer("user-key"), [(b"x-api-key", b"user-key")], [(b"api-key", b"user-key")]):
        assert await ask(BOTH, "/proxy/a/v1/realtime", kind="websocket", headers=headers) == (200, {})


async def test_a_websockets_key_may_be_among_its_subprotocols() -> None:
    """As from browsers, which can set no header."""

    async def status(*offered: str) -> int:
        return (await ask(BOTH, "/proxy/a/v1/realtime", kind="websocket", subprotocols=offered))[0]

    assert await status("realtime", "openai-insecure-api-key.user-key", "openai-beta.realtime-v1") == 200
    assert await status("realtime", "openai-insecure-api-key.user-ke") == 1008
    assert await status("user-key") == 1008


async def test_a_401_says_how_to_send_a_key() -> None:
    _, body = await ask(BOTH, "/v1/models", headers=[(b"x-api-key", b"user-ke")])
    assert "unknown API key" in body["error"]["message"] and "x-api-key" in body["error"]["message"]
    _, body = await ask(BOTH, "/v1/models")
    assert "no API key given" in body["error"]["message"]


@pytest.mark.parametrize(
    ("client", "headers", "local"),
    [
        (("127.0.0.1", 1), [HOST], True),
        (("127.8.8.8", 1), [(b"host", b"127.8.8.8")], True),
        (("::1", 1), [(b"host", b"[::1]:5000")], True),
        (("::ffff:127.0.0.1", 1), [HOST], True),
        (("::1", 1), [HOST], True),
        (("::ffff:192.0.2.7", 1), [HOST], False),
        (("::127.0.0.1", 1), [HOST], False),
        (("fe80::1%lo", 1), [HOST], False),
        (("fd00::2", 1), [HOST], False),
        (("64:ff9b::7f00:1", 1), [HOST], False),
        (("127.0.0.1", 1), [(b"host", b"rebound.example")], False),
        (("127.0.0.1", 1), [(b"host", b"localhost.example")], False),
        (("127.0.0.1", 1), [HOST, (b"origin", b"https://example.com")], False),
        (("127.0.0.1", 1), [HOST, (b"origin", b"null")], False),
        (("127.0.0.1", 1), [HOST, (b"origin", b"http://localhost:3000")], True),
        (("127.0.0.1", 1), [HOST, (b"x-forwarded-for", b"127.0.0.1")], False),
        (("127.0.0.1", 1), [HOST, (b"sec-fetch-site", b"cross-site")], False),
        (("127.0.0.1", 1), [HOST, (b"sec-fetch-site", b"same-site")], False),
        (("127.0.0.1", 1), [HOST, (b"sec-fetch-site", b"SAME-ORIGIN")], False),
        (("127.0.0.1", 1), [HOST, (b"sec-fetch-site", b"same-origin")], True),
        (("127.0.0.1", 1), [HOST, (b"sec-fetch-site", b"none")], True),
        (("127.0.0.1", 1), [HOST, (b"forwarded", b"for=192.0.2.1")], False),
        (("127.0.0.1", 1), [(b"host", b"[::1")], False),
        (REMOTE, [HOST], False),
        (None, [HOST], False),
    ],
)
def test_which_requests_are_local(client: tuple[str, int] | None, headers: RawHeaders, local: bool) -> None:
    assert is_local(client, headers) is local


def fetched(site: str, mode: str, dest: str, origin: str = "") -> RawHeaders:
    """The headers that a browser adds."""
    headers = [(b"sec-fetch-site", site), (b"sec-fetch-mode", mode), (b"sec-fetch-dest", dest)]
    return [(name, value.encode()) for name, value in [*headers, (b"origin", origin)] if value]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_without_keys_another_sites_page_has_no_access(
    site: str,
) -> None:
    for mode, dest, method in [
        ("no-cors", "image", "GET"),
        ("no-cors", "script", "GET"),
        ("navigate", "iframe", "GET"),
        ("navigate", "document", "POST"),
        ("cors", "empty", "GET"),
        ("no-cors", "empty", "POST"),
    ]:
        for path in ("/v1/completions", "/proxy/a/v1/models", "/instances", "/docs", "/generate"):
            status, body = await ask(Keys(), path, headers=fetched(site, mode, dest), method=method)
            assert (status, body["error"]["code"]) == (403, "other_origin"), (mode, dest, path)
            assert "ALLOWED_ORIGINS" in body["error"]["message"]


async def test_a_link_leads_to_pages_but_not_to_engines() -> None:
    link = fetched("cross-site", "navigate", "document")
    assert (await ask(Keys(), "/docs", headers=link, method="GET"))[0] == 200
    assert (await ask(Keys(), "/", headers=link, method="GET"))[0] == 200
    for path in ("/v1/completions", "/v1/models", "/proxy/a/v1/models"):
        assert (await ask(Keys(), path, headers=link, method="GET"))[0] == 403


async def test_an_allowed_page_may_send_requests_with_its_origin() -> None:
    origins = Origins(("https://a.example",))
    page = fetched("cross-site", "cors", "empty", "https://a.example")
    other = fetched("cross-site", "cors", "empty", "https://b.example")
    image = fetched("cross-site", "no-cors", "image")
    for headers, path, expected in [
        (page, "/v1/chat/completions", 200),
        (page, "/instances", 403),
        (other, "/v1/chat/completions", 403),
        (image, "/v1/chat/completions", 403),
    ]:
        assert (await ask(Keys(), path, headers=headers, origins=origins))[0] == expected, (headers, path)


async def test_a_page_with_a_key_needs_nothing_else() -> None:
    headers = [*fetched("cross-site", "cors", "empty", "https://a.example"), *bearer("user-key")]
    assert (await ask(BOTH, "/v1/chat/completions", headers=headers))[0] == 200


def test_paths_resembling_an_open_one_stay_protected() -> None:
    assert required_access(b"/health/../instances") is Access.OPEN  # literally, it matches no route
    assert required_access(b"//proxy/a") is Access.ADMIN
    assert required_access(b"/%70roxy/a") is Access.ADMIN


CONTROL = [
    "/proxy/a/sleep?level=2",
    "/proxy/a/sleep/",
    "/proxy/a/wake_up",
    "/proxy/a/SLEEP",
    "/proxy/a//sleep",
    "/proxy/a/./sleep",
    "/proxy/a/x/../sleep",
    "/proxy/a/v1/completions/../../sleep",
    "/proxy/a/%73leep",
    "/proxy/a/%2Fsleep",
    "/proxy/a/v1%2F..%2Fsleep",
    "/proxy/a/x/%2e%2E/sleep",
    "/proxy//sleep",
    "/proxy/x/../a/sleep",
    "/proxy/a/v1/load_lora_adapter",
    "/proxy/a/v1//unload_lora_adapter",
    "/proxy/a/reset_prefix_cache",
    "/proxy/a/collective_rpc",
    "/proxy/a/slots/0?action=erase",
    "/v1/load_lora_adapter?model=a",
    "/v1//load_lora_adapter",
    "/v1/%6Coad_lora_adapter",
    "/v1/../sleep",
    "/v1/%2e%2e/sleep",
    # However deep it is.
    "/proxy/a/inference/v1/abort_requests",
    "/proxy/a/INFERENCE//v1/./abort_requests/",
    "/proxy/a/inference/v1/abort_requests;x=1",
    "/proxy/a/inference;x/v1/abort%5Frequests",
    "/proxy/a/inference/v1/abort%255Frequests",
    "/proxy/a/inference%252Fv1/abort_requests",
    "/proxy/a/inference\\v1\\abort_requests",
    "/proxy/a/inference%5Cv1/abort_requests",
    "/proxy/a/v1/chat/completions/abort_requests",
    "/proxy/a/v1/chat/completions/..;/../sleep",
    "/proxy/a/v1/chat/completions%3F/x",
    "/proxy/a/v1/chat/completions%00",
    "/proxy/a/v1/chat/completions%0A",
    "/proxy/a/v1/responses/r1/cancel/all",
    "/v1/inference/v1/abort_requests",
    "/v1/chat/abort",
    # Of engines that aren't ours.
    "/proxy/a/abort_request",
    "/proxy/a/flush_cache",
    "/proxy/a/models/load",
    "/proxy/a/models/unload",
    "/proxy/a/props",
    "/proxy/a/api/pull",
    "/proxy/a/api/delete",
    "/proxy/a/v1/files",
    "/proxy/a/metrics",
    "/proxy/a/admin",
    "/proxy/a/x",
    # Readable routes are not writable.
    "/proxy/a/v1/models/org/sleep",
    "/proxy/a/models",
    "/proxy/a",
]


@pytest.mark.parametrize("path", CONTROL)
async def test_control_routes_require_an_admin_in_any_spelling(path: str) -> None:
    asked = path.partition("?")[0]  # a scope's path has no query
    status, body = await ask(BOTH, asked, headers=bearer("user-key"))
    assert (status, body["error"]["code"]) == (403, "admin_key_required")
    assert body["error"]["type"] == "permission_error"
    assert (await ask(BOTH, asked, headers=bearer("user-ke")))[0] == 401
    assert (await ask(BOTH, asked))[0] == 401
    assert await ask(BOTH, asked, headers=bearer("admin-key")) == (200, {})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/proxy/sleep/v1/completions"),  # an instance's name
        ("POST", "/proxy/a/v1/chat/completions"),
        ("POST", "/proxy/a/v1/chat/completions/batch"),
        ("POST", "/proxy/a//v1/./Completions/"),
        ("POST", "/proxy/a/v1/%63ompletions"),
        ("POST", "/proxy/a/inference/v1/generate"),
        ("DELETE", "/proxy/a/v1/responses/sleep"),
        ("POST", "/proxy/a/v1/responses/abort_requests/cancel"),  # a response's id
        ("GET", "/proxy/a/v1/models/org/sleep"),  # a model's name
        ("GET", "/proxy/a/v1/models/org%2Fm%C3%BCll"),
        ("HEAD", "/proxy/a/health"),
        ("GET", "/proxy/a"),
        ("GET", "/v1/models/org/memory"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/audio/transcriptions"),
    ],
)
async def test_routes_that_resemble_control_routes_need_only_a_key(method: str, path: str) -> None:
    assert (await ask(BOTH, path, headers=bearer("user-key"), method=method))[0] == 200


async def test_an_operator_can_add_request_routes() -> None:
    async def status(path: str) -> int:
        more = ("/predict", "/custom/*", "/mine/**")
        return (await ask(BOTH, path, headers=bearer("user-key"), more=more))[0]

    for path in ("/proxy/a/predict", "/v1/../x", "/proxy/a/custom/b", "/proxy/a/mine/b/c", "/proxy/a/MINE"):
        assert (await status(path) == 200) is (".." not in path), path
    for path in ("/proxy/a/predict/b", "/proxy/a/custom", "/proxy/a/custom/b/c", "/proxy/a/mine/../sleep"):
        assert await status(path) == 403, path


async def test_a_websocket_to_a_control_route_requires_an_admin_key_too() -> None:
    for path, key, answer in [
        ("/proxy/a/v1/realtime", "user-key", 200),
        ("/proxy/a/queue/join", "user-key", 1008),
        ("/proxy/a/queue/join", "admin-key", 200),
        ("/proxy/a/v1/models", "user-key", 1008),
    ]:
        assert (await ask(BOTH, path, kind="websocket", headers=bearer(key)))[0] == answer, path


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    """With keys, and an instance `a` that echoes every request."""
    folder = tmp_path_factory.mktemp("auth")
    settings = {"API_KEYS": "user-key", "ADMIN_API_KEYS": "admin-key"}
    with running_berth(folder, **settings) as berth, berth.client() as client:
        spec = {"name": "a", "model_name": "a", "engine": "command", "command": command()}
        headers = {"authorization": "Bearer admin-key"}
        client.post("/instances?wait=60", json=spec, headers=headers).raise_for_status()
        yield berth


def post(berth: BerthProcess, target: str, key: str) -> tuple[int, dict[str, Any]]:
    """Sends the target unchanged: HTTP clients would normalise it."""
    connection = http.client.HTTPConnection("127.0.0.1", berth.port, timeout=30)
    try:
        connection.request("POST", target, b'{"x": 1}', {"authorization": f"Bearer {key}"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("path", [*CONTROL, "http://localhost/proxy/a/sleep"])
def test_a_request_key_cannot_control_an_engine(berth: BerthProcess, path: str) -> None:
    status, body = post(berth, path, "user-key")
    assert (status, body["error"]["code"]) == (403, "admin_key_required")


@pytest.mark.parametrize("target", ["/sleep?level=2", "//sleep", "/x/../sleep", "/%73leep"])
def test_an_admin_can_and_the_path_arrives_unchanged(berth: BerthProcess, target: str) -> None:
    assert post(berth, f"/proxy/a{target}", "admin-key")[1]["target"] == target


def test_an_escaped_slash_stays_part_of_the_instance_name(berth: BerthProcess) -> None:
    status, body = post(berth, "/proxy/a%2Fsleep", "admin-key")
    assert (status, body["error"]["code"]) == (404, "instance_not_found")


def test_a_request_key_is_enough_for_requests(berth: BerthProcess) -> None:
    assert post(berth, "/proxy/a/v1/embeddings", "user-key")[1]["target"] == "/v1/embeddings"
