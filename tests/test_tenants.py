"""With keys, what a key has created belongs to that key: all routes of Berth and its engine, with two keys.

Routes come from Berth's OpenAPI document and the engine's table: a new one fails here until classified.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.access.key_store import Keys
from api.access.keys import Access, ApiKey, KeyRing, key_id_of, tenant_of
from api.control.forwarded import BY_INSTANCE, BY_NAME, TRANSLATED
from api.http.headers import TENANT
from engine.server.app.openapi_operations import GENERATING, OPERATIONS, POOLING
from engine.server.http.tenants import TENANT_HEADER
from tests.berth_process import BerthProcess, running_berth
from tests.instance_manager.stores.redis_process import REDIS_SERVER, RedisProcess
from tests.successive_berths import eventually

pytestmark = pytest.mark.timeout(180)

ONE, TWO, ADMIN, SECOND_ADMIN = "key-of-one-51f0", "key-of-two-77ac", "key-of-admin-02be", "key-of-ops-9d1f"
KEYS = {"API_KEYS": f"{ONE},{TWO}", "ADMIN_API_KEYS": f"{ADMIN},{SECOND_ADMIN}", "RESPONSE_CACHE_MB": "1"}
MODEL = "berth-demo"
LONG = "Once upon a time there was a harbour with many berths, and in each of them lay a ship. " * 3
RESPONSES, CHAT, COMPLETIONS = "/v1/responses", "/v1/chat/completions", "/v1/completions"
BATCH = "/v1/chat/completions/batch"

# Routes that do not depend on the caller.
SAME_FOR_ALL = {
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/health"),
    ("GET", "/ping"),
    ("POST", "/ping"),
    ("GET", "/version"),
    ("GET", "/load"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("POST", "/v1/messages/count_tokens"),
    *(POOLING.keys() - GENERATING.keys()),  # vectors of texts, of which nothing is kept
}
# Reused prompts show in their count of cached tokens, and in their response time.
REMEMBERING = {
    ("POST", COMPLETIONS): {"prompt": LONG, "max_tokens": 2},
    ("POST", CHAT): {"messages": [{"role": "user", "content": LONG}], "max_tokens": 2},
    ("POST", RESPONSES): {"input": LONG, "max_output_tokens": 2},
    ("POST", "/v1/messages"): {"messages": [{"role": "user", "content": LONG}], "max_tokens": 2},
    ("POST", BATCH): {"messages": [[{"role": "user", "content": LONG}]], "max_tokens": 2},
}
# Routes with the id of a stored response.
OF_A_RESPONSE: dict[tuple[str, str], Any] = {
    ("GET", "/v1/responses/{name}"): None,
    ("GET", "/v1/responses/{name}/input_items"): None,
    ("POST", "/v1/responses/{name}/cancel"): None,
    ("POST", "/v1/responses/input_tokens"): {"input": "More", "previous_response_id": "{name}"},
    ("POST", RESPONSES): {"input": "More", "previous_response_id": "{name}", "max_output_tokens": 2},
    ("DELETE", "/v1/responses/{name}"): None,
}
ENDING = {("POST", "/abort_requests"), ("POST", "/inference/v1/abort_requests")}
STEERING = {route for route, operation in OPERATIONS.items() if operation.sleep_mode}
STEERING |= {("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter")}

# Berth's own routes for request keys; forwarded routes are the engine's.
OF_USERS = {("GET", "/usage"), ("GET", "/v1/models"), ("GET", "/v1/models/{name}")}
# They show the models that the key may use.
READS = {
    ("GET", path)
    for path in (
        *("/models", "/models/sse", "/props", "/slots", "/running"),
        *("/api/v0/models", "/api/v0/models/{name}", "/api/v1/models"),
        *("/api/tags", "/api/ps", "/api/version"),
    )
} | {("POST", "/api/show")}
OPEN = {("GET", path) for path in ("/", "/health", "/health/liveness", "/health/readiness")}


def by(key: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **more}


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[BerthProcess]:
    with running_berth(folder, **{**KEYS, **settings}) as berth:
        with berth.client() as client:
            spec = {"name": "demo", "model_name": MODEL}
            answer = client.post("/instances?wait=120", json=spec, headers=by(ADMIN))
            assert answer.status_code == 201, answer.text
        yield berth


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.touch(mode=0o600)
    return path


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Iterator[BerthProcess]:
    with serving(tmp_path_factory.mktemp("tenants"), API_KEYS_FILE=str(key_file)) as berth:
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    with berth.client() as client:
        yield client


def ask(
    client: httpx.Client, key: str | None, method: str, path: str, body: Any = None, **headers: str
) -> httpx.Response:
    given = headers if key is None else by(key, **headers)
    return client.request(method, path, json=body, headers=given)


def url_of(path: str, way: str) -> str:
    """Send a request by the model's name where possible, or by the instance."""
    return f"{path}?model={MODEL}" if way == "by name" else f"/proxy/demo{path}"


WAYS = ("by name", "by instance")


def test_every_route_of_the_engine_is_covered() -> None:
    judged = [SAME_FOR_ALL, REMEMBERING.keys(), OF_A_RESPONSE.keys(), ENDING, STEERING]
    assert set().union(*judged) == set(OPERATIONS)


def test_berth_and_its_engine_use_the_same_header() -> None:
    assert TENANT.decode() == TENANT_HEADER


def test_every_route_of_berth_requires_an_admin_except_these(client: httpx.Client) -> None:
    paths = ask(client, ADMIN, "GET", "/openapi.json").json()["paths"]
    seen = set()
    for path, operations in paths.items():
        for verb, operation in operations.items():
            route = (verb.upper(), path)
            expected: dict[str | None, set[int]]
            if not {BY_NAME, BY_INSTANCE, TRANSLATED}.isdisjoint(operation["tags"]):
                expected = {None: {401}}
            elif route in OPEN:
                expected = {key: {200} for key in (None, ONE, ADMIN)}
            elif route in OF_USERS:
                expected = {None: {401}, ONE: {200, 404}, ADMIN: {200, 404}}
            elif route in READS:
                expected = {None: {401}, ONE: {200, 400, 404}, ADMIN: {200, 400, 404}}
            else:
                expected = {None: {401}, ONE: {403}}
            seen.add(route)
            for key, statuses in expected.items():
                headers = {} if key is None else by(key)
                with client.stream(verb, re.sub(r"\{[^}]+\}", "x", path), headers=headers) as answer:
                    assert answer.status_code in statuses, (route, key)  # a stream has no end
    assert seen >= OF_USERS | OPEN | READS


@pytest.mark.parametrize("route", sorted(SAME_FOR_ALL), ids=" ".join)
def test_routes_that_are_the_same_for_all(client: httpx.Client, route: tuple[str, str]) -> None:
    method, path = route
    path = path.replace("{name}", MODEL)
    bodies = {"/tokenize": {"prompt": "x"}, "/detokenize": {"tokens": [5]}}
    answers = [ask(client, key, method, f"/proxy/demo{path}", bodies.get(path)) for key in (ONE, TWO)]
    assert answers[0].status_code == answers[1].status_code != 401
    assert ask(client, None, method, f"/proxy/demo{path}").status_code == 401


@pytest.mark.parametrize("route", sorted(STEERING), ids=" ".join)
def test_users_cannot_control_an_engine(client: httpx.Client, route: tuple[str, str]) -> None:
    statuses = [ask(client, key, route[0], f"/proxy/demo{route[1]}").status_code for key in (ONE, None)]
    assert statuses == [403, 401]


# Stored responses


def make(client: httpx.Client, key: str, way: str, **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "input": "Hi", "max_output_tokens": 2, **more}
    answer = ask(client, key, "POST", url_of(RESPONSES, way), body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def use(
    client: httpx.Client, key: str | None, way: str, route: tuple[str, str], name: str, **headers: str
) -> httpx.Response:
    """Call a route with the id of this response."""
    method, path = route
    body = OF_A_RESPONSE[route]
    if body is not None:
        body = {"model": MODEL, **json.loads(json.dumps(body).replace("{name}", name))}
    return ask(client, key, method, url_of(path.replace("{name}", name), way), body, **headers)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("route", OF_A_RESPONSE, ids=" ".join)
def test_a_response_belongs_to_its_key(client: httpx.Client, way: str, route: tuple[str, str]) -> None:
    name = make(client, ONE, way)["id"]
    pretending = {TENANT_HEADER: f"{tenant_of(ApiKey(ONE, Access.INFERENCE))};admin"}
    for key in (TWO, ADMIN):
        for headers in ({}, pretending, {**pretending, "connection": TENANT_HEADER}):
            for _ in range(2):  # the second head is a known one
                foreign = use(client, key, way, route, name, **headers)
                unknown = use(client, key, way, route, "resp_never", **headers)
                assert foreign.status_code == unknown.status_code == 404, foreign.text
                assert foreign.text.replace(name, "") == unknown.text.replace("resp_never", "")
    assert use(client, None, way, route, name).status_code == 401
    own = use(client, ONE, way, route, name, **{TENANT_HEADER: "somebody-else"})
    assert own.status_code == (400 if route[1].endswith("cancel") else 200), own.text


@pytest.mark.parametrize("way", WAYS)
def test_ids_are_random_and_cannot_be_overwritten(client: httpx.Client, way: str) -> None:
    first = make(client, ONE, way, input="first", request_id="same")["id"]
    for key in (ONE, TWO):
        for given in ("same", first, first.removeprefix("resp_")):
            body = {"model": MODEL, "input": "x", "max_output_tokens": 1, "request_id": given}
            headers = {"x-request-id": given}
            assert ask(client, key, "POST", url_of(RESPONSES, way), body, **headers).json()["id"] != first
    listed = use(client, ONE, way, ("GET", "/v1/responses/{name}/input_items"), first).json()["data"]
    assert listed[0]["content"][0]["text"] == "first"


def test_a_replaced_key_keeps_its_responses_and_a_reassigned_one_does_not(
    client: httpx.Client, key_file: Path
) -> None:
    """On one connection, so that heads and derived results are cached."""

    def know(line: str) -> None:
        key_file.write_text(line)
        ask(client, ADMIN, "POST", "/reload").raise_for_status()

    def reads(key: str) -> list[int]:
        read = ("GET", "/v1/responses/{name}")
        return [use(client, key, "by instance", read, name).status_code for _ in range(3)]

    know("alice: key-a")
    name = make(client, "key-a", "by instance")["id"]
    assert reads("key-a") == [200] * 3
    know("bob: key-a")
    assert reads("key-a") == [404] * 3
    know("alice: key-b")
    assert (reads("key-a"), reads("key-b")) == ([401] * 3, [200] * 3)
    know("")


def test_ids_of_requests_cannot_be_guessed(client: httpx.Client) -> None:
    ids = [ask(client, ONE, "GET", "/proxy/demo/v1/models").headers["x-request-id"] for _ in range(40)]
    assert len({one[:6] for one in ids}) > 30 and len({one[-6:] for one in ids}) > 30


# Caches


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("route", REMEMBERING, ids=" ".join)
def test_a_prefix_of_one_key_is_new_to_the_other(
    client: httpx.Client, route: tuple[str, str], way: str, stream: bool
) -> None:
    if stream and route[1] == BATCH:
        pytest.skip("a batch is never streamed")
    salt = f"{route} {way} {stream}"  # so that cases are independent
    body = {"model": MODEL, **REMEMBERING[route], "stream": stream, "cache_salt": salt}
    if stream and route[1] in (COMPLETIONS, CHAT):
        body["stream_options"] = {"include_usage": True}
    found = []
    for key in (ONE, ONE, TWO, ADMIN, TWO, ONE):
        answer = ask(client, key, route[0], url_of(route[1], way), body, **{TENANT_HEADER: "the-same"})
        assert answer.status_code == 200, answer.text
        counts = re.findall(r'"(?:cached_tokens|cache_read_input_tokens)":\s*(\d+)', answer.text)
        found.append(int(counts[-1]) > 0)
    assert found == [False, True, False, False, True, True]


def test_a_response_is_cached_for_its_own_key(client: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": "Remember this", "temperature": 0, "max_tokens": 3}
    keys = (ONE, ONE, TWO, ADMIN, TWO, ONE)
    found = [ask(client, key, "POST", COMPLETIONS, body).headers["x-berth-cache"] for key in keys]
    assert found == ["miss", "hit", "miss", "miss", "hit", "hit"]


# Running requests and usage


@pytest.mark.parametrize("route", sorted(ENDING), ids=" ".join)
def test_a_key_cannot_abort_anothers_request(client: httpx.Client, route: tuple[str, str]) -> None:
    endless = {"max_output_tokens": None, "ignore_eos": True, "background": True}
    name = make(client, ONE, "by name", **endless)["id"]
    path = f"/proxy/demo{route[1]}"
    body = {"request_ids": [name]}
    others = ask(client, TWO, "POST", path, body, **{TENANT_HEADER: "x;admin"})
    assert others.status_code == 403 or others.json()["aborted"] == 0
    assert ask(client, None, "POST", path, body).status_code == 401
    assert ask(client, ADMIN, "POST", path, body).json()["aborted"] == 1
    read = ("GET", "/v1/responses/{name}")
    eventually(lambda: use(client, ONE, "by name", read, name).json()["status"] == "cancelled", lambda: name)


def test_a_key_sees_only_its_own_usage(client: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    for key in (ONE, TWO):
        ask(client, key, "POST", COMPLETIONS, body).raise_for_status()

    def seen(key: str, query: str = "") -> set[str]:
        return {one["key_id"] for one in ask(client, key, "GET", f"/usage{query}").json()["data"]}

    assert seen(ONE) == {key_id_of(ONE)}
    assert seen(TWO) == {key_id_of(TWO)}
    assert seen(ONE, f"?key_id={key_id_of(TWO)}") == set()
    assert seen(ADMIN) >= {key_id_of(ONE), key_id_of(TWO)}
    assert seen(ADMIN, f"?key_id={key_id_of(TWO)}") == {key_id_of(TWO)}


def test_idempotency_keys_are_separate_for_each_admin(client: httpx.Client) -> None:
    def create(key: str, **more: Any) -> httpx.Response:
        spec = {"model_name": "idem", "engine": "command", "command": ["/bin/false", "{port}"], **more}
        return ask(client, key, "POST", "/instances", spec, **{"idempotency-key": "1"})

    first, again, others = create(ADMIN), create(ADMIN), create(SECOND_ADMIN, timeout=60)
    assert first.status_code == others.status_code == 201, others.text
    assert first.json()["instance_id"] == again.json()["instance_id"] != others.json()["instance_id"]
    assert create(ADMIN, timeout=60).json()["error"]["code"] == "idempotency_key_reused"
    for name in {one.json()["instance_id"] for one in (first, others)}:
        ask(client, ADMIN, "DELETE", f"/instances/{name}").raise_for_status()


# Through another node, and with shared caches


@contextmanager
def two_berths(folder: Path) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """The node that owns the engine, with shared caches, and another node."""
    redis = RedisProcess(folder)
    redis.start()
    with ExitStack() as stack:
        stack.callback(redis.kill)
        for name in ("owner", "other"):
            (folder / name).mkdir()
        owner = stack.enter_context(serving(folder / "owner", STATE_URL=redis.url, SHARE_CACHES="true"))
        other = stack.enter_context(running_berth(folder / "other", **KEYS, STATE_URL=redis.url))
        here, there = (stack.enter_context(one.client()) for one in (owner, other))
        eventually(lambda: ask(there, ADMIN, "GET", "/instances/demo").json().get("status") == "running", str)
        yield here, there


@pytest.mark.skipif(REDIS_SERVER is None, reason="redis-server is not installed")
def test_other_nodes_and_shared_caches_do_not_reveal_stored_responses(tmp_path: Path) -> None:
    with two_berths(tmp_path) as (here, there):
        for way in WAYS:
            name = make(there, ONE, way)["id"]
            pretending = {TENANT_HEADER: tenant_of(ApiKey(ONE, Access.INFERENCE))}
            for client in (here, there):
                read = ("GET", "/v1/responses/{name}")
                assert use(client, ONE, way, read, name).status_code == 200
                assert use(client, TWO, way, read, name, **pretending).status_code == 404
        body = {"model": MODEL, "prompt": LONG, "temperature": 0, "max_tokens": 2}
        answers = [ask(here, key, "POST", COMPLETIONS, body) for key in (ONE, TWO)]
        assert [one.headers["x-berth-cache"] for one in answers] == ["miss", "hit"]
        fresh = ask(here, TWO, "POST", f"/proxy/demo{COMPLETIONS}", body).json()
        assert fresh["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


# Callers of keys


def test_a_tenant_id_is_stable_and_reveals_nothing() -> None:
    plain, named = ApiKey(ONE, Access.INFERENCE), ApiKey(ONE, Access.INFERENCE, "alice")
    assert tenant_of(plain) != tenant_of(ApiKey(TWO, Access.INFERENCE))
    assert tenant_of(named) == tenant_of(ApiKey(TWO, Access.INFERENCE, "alice"))  # renewed
    assert tenant_of(plain) != tenant_of(named)
    for tenant in map(tenant_of, (plain, named)):
        assert re.fullmatch("[0-9a-f]{32}", tenant)
        assert key_id_of(ONE) not in tenant


@pytest.mark.parametrize("shares", [False, True])
def test_a_caller_has_its_tenant(shares: bool) -> None:
    ring = Keys((ONE,), (ADMIN,), shares_caches=shares).ring()
    user, admin = ring.find(ONE.encode()), ring.find(ADMIN.encode())
    end = ";shared\r\n" if shares else "\r\n"
    assert user.tenant_line.decode() == f"x-berth-tenant: {user.tenant}{end}"
    assert admin.tenant_line.decode() == f"x-berth-tenant: {admin.tenant};admin{end}"
    assert user.cache_owner == ("" if shares else user.tenant)
    nobody = KeyRing([]).find(b"x")
    assert (nobody.tenant, nobody.tenant_line, nobody.cache_owner) == ("", b"", "")
