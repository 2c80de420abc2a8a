"""Isolation of API keys: stored responses, cached prefixes, running requests."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.server.generation import response_store as store_module
from engine.server.generation.response_store import ResponseStore, StoredResponse, TenantResponses
from engine.server.http.tenants import DEFAULT_TENANT, TENANT_HEADER, Tenant, tenant_of_header, tenant_of_key
from tests.engine.server.in_process import App, app_in_process
from tests.engine.server.serving import Running, fake_core, running, wait_until
from tests.engine.server.test_streams import COMPLETIONS, Valve, events

RESPONSES, CHAT, MESSAGES = "/v1/responses", "/v1/chat/completions", "/v1/messages"
ABORT = "/abort_requests"
LONG = "a prompt of some length, which fills blocks of the cache " * 4
ONE, TWO, BERTH = "first-key", "second-key", "berths-own-key"


def by(key: str, tenant: str | None = None) -> dict[str, str]:
    named = {} if tenant is None else {TENANT_HEADER: tenant}
    return {"authorization": f"Bearer {key}", **named}


# Two clients: of a server with two keys, and of Berth, which names the tenant.
PAIRS = {
    "two keys": (by(ONE), by(TWO)),
    "two of Berth's": (by(BERTH, "aa"), by(BERTH, "bb")),
    "a user's and an admin's of Berth's": (by(BERTH, "aa"), by(BERTH, "cc;admin")),
    "one of Berth's, and Berth itself": (by(BERTH, "aa"), by(BERTH)),
    "a key, and one that says it were that": (by(ONE), by(TWO, tenant_of_key(ONE.encode()).name)),
}


@pytest.fixture
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model, api_keys=(ONE, TWO, BERTH), berth_key=BERTH) as app:
        app.will_say("Hello")
        yield app


@pytest.fixture(params=PAIRS.values(), ids=list(PAIRS))
def pair(request: pytest.FixtureRequest) -> tuple[dict[str, str], dict[str, str]]:
    pair: tuple[dict[str, str], dict[str, str]] = request.param
    return pair


async def make(app: App, headers: dict[str, str], **body: Any) -> dict[str, Any]:
    answer = await app.http.post(RESPONSES, json={"input": "Hi", **body}, headers=headers)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def uses_of(name: str, item: str) -> dict[str, tuple[str, str, dict[str, Any] | None]]:
    """All uses of a response or of one of its items by id."""
    return {
        "read": ("GET", f"{RESPONSES}/{name}", None),
        "list": ("GET", f"{RESPONSES}/{name}/input_items", None),
        "continue": ("POST", RESPONSES, {"input": "More", "previous_response_id": name}),
        "count": ("POST", f"{RESPONSES}/input_tokens", {"input": "More", "previous_response_id": name}),
        "refer": ("POST", RESPONSES, {"input": [{"type": "item_reference", "id": item}]}),
        "cancel": ("POST", f"{RESPONSES}/{name}/cancel", None),
        "delete": ("DELETE", f"{RESPONSES}/{name}", None),
    }


async def test_a_response_is_invisible_to_other_keys(
    app: App, pair: tuple[dict[str, str], dict[str, str]]
) -> None:
    owner, other = pair
    made = await make(app, owner)
    name, item = made["id"], made["output"][0]["id"]
    absent = uses_of("resp_never", "msg_never")
    for use, (method, path, body) in uses_of(name, item).items():
        foreign = await app.http.request(method, path, json=body, headers=other)
        unknown = await app.http.request(*absent[use][:2], json=absent[use][2], headers=other)
        assert foreign.status_code == unknown.status_code == 404, use
        assert foreign.text.replace(name, "").replace(item, "") == unknown.text.replace(
            "resp_never", ""
        ).replace("msg_never", "")
    for use, (method, path, body) in uses_of(name, item).items():
        answer = await app.http.request(method, path, json=body, headers=owner)
        assert answer.status_code == (400 if use == "cancel" else 200), use


@pytest.mark.parametrize("is_same_client", [True, False], ids=["one client", "two clients"])
async def test_a_response_is_never_overwritten(app: App, is_same_client: bool) -> None:
    """Neither by a request with the same id in the header or body, nor by one that imitates a response id."""
    first = await make(app, {**by(ONE), "x-request-id": "same"}, request_id="same", input="first")
    suffix = first["id"].removeprefix("resp_")
    ids = {first["id"]}
    for given in ("same", suffix, first["id"]):
        headers = {**by(ONE if is_same_client else TWO), "x-request-id": given}
        ids.add((await make(app, headers, request_id=given, input="second"))["id"])
    assert len(ids) == 4
    assert all(re.fullmatch(r"resp_[0-9a-f]{32}", one) for one in ids)
    listed = (await app.http.get(f"{RESPONSES}/{first['id']}/input_items", headers=by(ONE))).json()
    assert listed["data"][0]["content"][0]["text"] == "first"


async def test_two_clients_may_use_the_same_ids_of_items(app: App) -> None:
    items = [[{"role": "user", "content": text, "id": "msg_1"}] for text in ("x", "x" * 60)]
    counts = []
    for key, given in zip((ONE, TWO), items, strict=True):
        await make(app, by(key), input=given)
    for key in (ONE, TWO):
        body = {"input": [{"type": "item_reference", "id": "msg_1"}]}
        answer = await app.http.post(f"{RESPONSES}/input_tokens", json=body, headers=by(key))
        counts.append(answer.json()["input_tokens"])
    assert counts[1] == counts[0] + 59


# Cached prefixes


def body_for(path: str, **more: Any) -> dict[str, Any]:
    """A body with a prompt of several blocks, for any route."""
    if path == COMPLETIONS:
        return {"prompt": LONG, "max_tokens": 2, **more}
    if path == RESPONSES:
        return {"input": LONG, "max_output_tokens": 2, **more}
    return {"messages": [{"role": "user", "content": LONG}], "max_tokens": 2, **more}


async def cached(app: App, path: str, headers: dict[str, str], **more: Any) -> int:
    answer = await app.http.post(path, json=body_for(path, **more), headers=headers)
    assert answer.status_code == 200, answer.text
    found = re.search(r'"(?:cached_tokens|cache_read_input_tokens)":\s*(\d+)', answer.text)
    assert found is not None, answer.text
    return int(found[1])


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, RESPONSES, MESSAGES])
async def test_a_prefix_is_shared_only_within_a_key(
    app: App, path: str, pair: tuple[dict[str, str], dict[str, str]]
) -> None:
    owner, other = pair
    assert await cached(app, path, owner) == 0
    assert await cached(app, path, owner) > 0
    assert await cached(app, path, other) == 0


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, RESPONSES, MESSAGES])
async def test_a_prefix_is_shared_only_with_equal_salts(app: App, path: str) -> None:
    for more in ({}, {"cache_salt": "s"}, {"cache_salt": "t"}):
        assert await cached(app, path, by(ONE), **more) == 0
        assert await cached(app, path, by(ONE), **more) > 0
    assert await cached(app, path, by(TWO), cache_salt="s") == 0
    assert await cached(app, path, by(ONE), cache_salt=None) > 0


async def test_a_salt_works_without_keys(fake_model: Path) -> None:
    async with app_in_process(fake_model) as app:
        app.will_say("Hello")
        assert [await cached(app, COMPLETIONS, {}) > 0 for _ in range(2)] == [False, True]
        assert [await cached(app, COMPLETIONS, {}, cache_salt="s") > 0 for _ in range(2)] == [False, True]
        assert await cached(app, COMPLETIONS, {TENANT_HEADER: "aa"}) > 0  # it does not distinguish tenants


async def test_prefixes_are_shared_if_berth_allows_it(app: App) -> None:
    assert await cached(app, CHAT, by(BERTH, "aa;shared")) == 0
    assert await cached(app, CHAT, by(BERTH, "bb;admin;shared")) > 0
    assert await cached(app, CHAT, by(BERTH, "aa")) == 0
    name = (await make(app, by(BERTH, "aa;shared")))["id"]  # stored responses are not
    assert (await app.http.get(f"{RESPONSES}/{name}", headers=by(BERTH, "bb;shared"))).status_code == 404
    assert (await app.http.get(f"{RESPONSES}/{name}", headers=by(BERTH, "aa"))).status_code == 200


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("salt", ["", 1, ["s"], "s" * 513, False])
async def test_an_invalid_salt_is_named(app: App, path: str, salt: Any) -> None:
    answer = await app.http.post(path, json=body_for(path, cache_salt=salt), headers=by(ONE))
    assert answer.status_code == 400
    assert "cache_salt" in answer.text


def test_berth_names_the_tenant_in_a_header() -> None:
    assert tenant_of_header("") == tenant_of_header(";admin") == DEFAULT_TENANT
    assert tenant_of_header("aa") == Tenant("aa")
    assert tenant_of_header("aa;admin;shared") == Tenant("aa", is_admin=True, shares_cache=True)
    assert tenant_of_key(b"one") != tenant_of_key(b"two")
    assert "one" not in tenant_of_key(b"one").name


# Running requests


@pytest.fixture
def valve() -> Valve:
    return Valve()


@pytest.fixture
def held_server(fake_model: Path, valve: Valve) -> Iterator[Running]:
    """A server with keys whose engine steps only when the test allows it."""
    keys: dict[str, Any] = {"api_keys": (ONE, TWO, BERTH), "berth_key": BERTH}
    with running(fake_model, fake_core(fake_model, before=valve), shutdown_timeout_s=0.0, **keys) as server:
        try:
            yield server
        finally:
            valve.open()


def abort(server: Running, headers: dict[str, str], *ids: str) -> int:
    with server.http(headers=headers) as client:
        answer = client.post(ABORT, json={"request_ids": ids})
    assert answer.status_code == 200, answer.text
    number: int = answer.json()["aborted"]
    return number


@pytest.mark.parametrize("use", ["the request's id", "the answer's id"])
def test_a_key_can_abort_only_its_own_requests(held_server: Running, valve: Valve, use: str) -> None:
    body = {"prompt": "abc", "max_tokens": 100, "ignore_eos": True, "stream": True}
    owner = by(BERTH, "aa")
    valve.let_pass(3)
    with (
        held_server.http(headers={**owner, "x-request-id": "known"}) as client,
        client.stream("POST", COMPLETIONS, json=body) as response,
    ):
        stream = events(response)
        name = next(stream)["id"] if use == "the answer's id" else "known"
        for other in (by(ONE), by(BERTH, "bb"), by(ONE, "aa"), by(TWO, "aa;admin")):
            assert abort(held_server, other, name) == 0
        assert abort(held_server, owner, name) == 1
        valve.open()
        *_, last, _ = stream
    assert last["choices"][0]["finish_reason"] == "abort"


@pytest.mark.parametrize("admin", [by(BERTH, "cc;admin"), by(BERTH)], ids=["an admin", "Berth"])
def test_admins_can_abort_all_requests(held_server: Running, valve: Valve, admin: dict[str, str]) -> None:
    body = {"input": "abc", "ignore_eos": True, "background": True}
    with held_server.http(headers=by(BERTH, "aa")) as client:
        name = client.post(RESPONSES, json=body).json()["id"]
        wait_until(lambda: held_server.engine.num_unfinished == 1)
        assert abort(held_server, by(BERTH, "bb"), name) == 0
        assert abort(held_server, admin, name) == 1
        valve.open()
        wait_until(lambda: client.get(f"{RESPONSES}/{name}").json()["status"] == "cancelled")


# Ends other than completion


def test_an_aborted_response_is_not_complete(held_server: Running, valve: Valve) -> None:
    """Streamed or whole, and when it is retrieved later."""
    valve.let_pass(3)
    with held_server.http(headers=by(ONE)) as client:
        body = {"input": "abc", "ignore_eos": True, "stream": True}
        with client.stream("POST", RESPONSES, json=body) as response:
            stream = _responses_events(response)
            begun = next(stream)["response"]
            assert abort(held_server, by(ONE), begun["id"]) == 1
            valve.open()
            *_, last = stream
        assert last["type"] == "response.incomplete"
        assert last["response"]["status"] == "incomplete"
        assert last["response"]["incomplete_details"] == {"reason": "aborted"}
        assert last["response"]["usage"]["output_tokens"] > 0
        assert client.get(f"{RESPONSES}/{begun['id']}").json() == last["response"]


def test_an_aborted_background_response_is_cancelled(held_server: Running, valve: Valve) -> None:
    valve.let_pass(3)
    with held_server.http(headers=by(ONE)) as client:
        name = client.post(RESPONSES, json={"input": "a", "ignore_eos": True, "background": True}).json()[
            "id"
        ]
        wait_until(lambda: held_server.engine.stats().generation_tokens > 0)
        assert abort(held_server, by(ONE), name) == 1
        valve.open()
        wait_until(lambda: client.get(f"{RESPONSES}/{name}").json()["status"] != "in_progress")
        response = client.get(f"{RESPONSES}/{name}").json()
    assert response["status"] == "cancelled"
    assert response["incomplete_details"] == {"reason": "aborted"}


def test_a_disconnect_cancels_the_response(held_server: Running, valve: Valve) -> None:
    valve.let_pass(3)
    # With another seed, the three tokens may be part of a character, which has no text yet.
    body = {"input": "abc", "ignore_eos": True, "stream": True, "seed": 0}
    with held_server.http(headers=by(ONE)) as client:
        with client.stream("POST", RESPONSES, json=body) as response:
            stream = _responses_events(response)
            name = next(stream)["response"]["id"]
            assert next(one for one in stream if one["type"] == "response.output_text.delta")
        wait_until(lambda: client.get(f"{RESPONSES}/{name}").status_code == 200)
        response = client.get(f"{RESPONSES}/{name}").json()
        valve.open()
    assert response["status"] == "cancelled"
    assert response["output"][-1]["status"] == "incomplete"
    assert response["usage"]["output_tokens"] > 0


def test_a_failed_response_can_be_retrieved(held_server: Running, valve: Valve) -> None:
    valve.let_pass(3)
    body = {"input": "abc", "ignore_eos": True, "stream": True}
    with held_server.http(headers=by(ONE)) as client:
        with client.stream("POST", RESPONSES, json=body) as response:
            stream = _responses_events(response)
            name = next(stream)["response"]["id"]
            valve.failure = RuntimeError("broken")
            valve.let_pass()
            *_, last = stream
        assert last["type"] == "response.failed"
        assert client.get(f"{RESPONSES}/{name}").json() == last["response"]
        assert client.get(f"{RESPONSES}/{name}", headers=by(TWO)).status_code == 404


def test_a_deleted_response_stays_deleted(held_server: Running, valve: Valve) -> None:
    with held_server.http(headers=by(ONE)) as client:
        name = client.post(RESPONSES, json={"input": "a", "background": True}).json()["id"]
        client.delete(f"{RESPONSES}/{name}").raise_for_status()
        valve.open()
        held_server.wait_idle()
        assert client.get(f"{RESPONSES}/{name}").status_code == 404


def _responses_events(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


# The limits of the store


def _put(responses: TenantResponses, name: str, size: int = 10) -> None:
    responses.put(StoredResponse({"id": name, "text": "x" * size}, [], 0))


def _names(responses: TenantResponses, names: list[str]) -> list[str]:
    return [name for name in names if name in responses._stored]


def test_a_tenant_within_its_share_loses_no_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_STORED", 6)
    store = ResponseStore()
    few, many = store.of("few"), store.of("many")
    kept = [f"few-{number}" for number in range(3)]
    for name in kept:
        _put(few, name)
    for number in range(50):
        _put(many, f"many-{number}")
    assert _names(few, kept) == kept
    assert len(many) == 3
    assert many.get("many-49")
    for number in range(50):  # nor do later tenants
        _put(store.of("third"), f"third-{number}")
    assert [len(store.of(name)) for name in ("few", "many", "third")] == [2, 2, 2]


def test_a_large_response_evicts_no_other_tenants_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_STORED_BYTES", 1000)
    store = ResponseStore()
    alone = store.of("alone")
    _put(alone, "long", 5000)
    assert alone.get("long")
    few = store.of("few")
    _put(few, "small")
    assert few.get("small")
    for number in range(20):
        _put(store.of("many"), f"many-{number}", 900)
        assert few.get("small")


def test_a_single_tenant_can_fill_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_STORED", 6)
    store = ResponseStore()
    for number in range(10):
        _put(store.of(""), f"{number}")
    assert len(store.of("")) == 6
