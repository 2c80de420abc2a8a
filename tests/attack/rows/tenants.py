"""One key attacks another's data: its stored responses, its requests, its usage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tests.attack.attack import Attack, attack
from tests.attack.environment import DEMO, MODEL, AttackEnvironment
from tests.faults.journal import Reply

RESPONSES = "/v1/responses"
BOTH_WAYS = ("by name", "by instance")


def by(way: str, path: str) -> str:
    """The target of a route, by the model's name or by the instance."""
    return f"{path}?model={MODEL}" if way == "by name" else f"/proxy/{DEMO}{path}"


def make(ask: Callable[..., Reply], **more: Any) -> str:
    """Create a stored response; returns its id."""
    made = ask("POST", RESPONSES, {"model": MODEL, "input": "A secret", "max_output_tokens": 2, **more})
    assert made.status == 200, str(made)
    return str(json.loads(made.body)["id"])


def _is_untouched(env: AttackEnvironment, name: str) -> None:
    """Assert that the victim's own response exists and is unchanged."""
    read = env.as_victim("GET", f"/proxy/{DEMO}{RESPONSES}/{name}")
    assert read.status == 200, f"the victim's own response is gone: {read}"
    items = env.as_victim("GET", f"/proxy/{DEMO}{RESPONSES}/{name}/input_items")
    assert items.status != 200 or b"A secret" in items.body, f"the victim's own response is changed: {items}"


def _taking(what: str, method: str, path: str, body: dict[str, Any] | None = None) -> Attack:
    """An attack on a response whose id the attacker knows."""

    def act(env: AttackEnvironment) -> None:
        name = make(env.as_victim)
        content = json.dumps(body).replace("{id}", name).encode() if body else None
        with env.measured():
            replies = [env.ask(method, by(way, path.replace("{id}", name)), content) for way in BOTH_WAYS]
        for reply in replies:
            assert reply.status == 404, f"not 404: {reply}"
            assert b"A secret" not in reply.body
        _is_untouched(env, name)

    return Attack(f"{what} another's response", "key", act)


def _ids_near_ones_own(env: AttackEnvironment) -> None:
    """Sequential ids would be neighbours."""
    name = make(env.as_victim)
    own = make(env.ask)
    digits = re.findall(r"[0-9a-f]+", own)[-1]
    base, width = own[: -len(digits)], len(digits)
    guesses = {f"{base}{(int(digits, 16) - n) % 16**width:0{width}x}" for n in range(1, 60)}
    if counted := re.search(r"(\d+)\D*$", own):
        start, end = counted.span(1)
        guesses |= {f"{own[:start]}{max(0, int(counted[1]) - n)}{own[end:]}" for n in range(1, 20)}
    with env.measured():
        replies = [env.ask("GET", by("by name", f"{RESPONSES}/{one}")) for one in guesses - {own}]
    got = [reply for reply in replies if reply.status != 404]
    assert not got, f"guessed: {got[0]}"
    shared = len([1 for a, b in zip(name, own, strict=False) if a == b])
    assert shared < len(name) - 8, f"ids differ in few places: {name} {own}"


def _overwriting_by_the_same_request_id(env: AttackEnvironment) -> None:
    name = make(env.as_victim)
    with env.measured():
        for given in (name, name.removeprefix("resp_")):
            body = {"model": MODEL, "input": "x", "max_output_tokens": 1, "request_id": given}
            for way in BOTH_WAYS:
                reply = env.ask("POST", by(way, RESPONSES), body, x_request_id=given)
                assert reply.status != 200 or json.loads(reply.body)["id"] != name, "it is overwritten"
    _is_untouched(env, name)


def _claiming_to_be_another(env: AttackEnvironment) -> None:
    """With the header that Berth itself sends to the engine."""
    name = make(env.as_victim)
    claims = ("admin", ";admin", "x;admin;shared", "")
    with env.measured():
        for claim in claims:
            for way in BOTH_WAYS:
                target = by(way, f"{RESPONSES}/{name}")
                for connection in ("close", "x-berth-tenant"):
                    reply = env.ask("GET", target, x_berth_tenant=claim, connection=connection)
                    assert reply.status == 404, f"not 404: {reply}"
    _is_untouched(env, name)


def _ending_anothers_request(env: AttackEnvironment) -> None:
    """A background response, with each spelling of the routes that abort requests."""
    endless = {"background": True, "max_output_tokens": 1500, "ignore_eos": True}
    name = make(env.as_victim, **endless)
    routes = ("/abort_requests", "/inference/v1/abort_requests", "//abort_requests", "/v1/../abort_requests")
    with env.measured():
        for path in routes:
            for target in (f"/proxy/{DEMO}{path}", f"{path}?model={MODEL}"):
                ids = {"request_ids": [name, name.removeprefix("resp_")]}
                reply = env.ask("POST", target, ids)
                harmless = reply.status in (400, 403, 404) or json.loads(reply.body) == {"aborted": 0}
                assert harmless, f"{target}: {reply}"
    read = env.as_victim("GET", f"{RESPONSES}/{name}?model={MODEL}")
    assert json.loads(read.body)["status"] in ("queued", "in_progress", "completed", "incomplete"), str(read)
    env.as_victim("POST", f"{RESPONSES}/{name}/cancel?model={MODEL}")


def _reading_anothers_usage(env: AttackEnvironment) -> None:
    for ask in (env.as_victim, env.ask):
        ask("POST", "/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 1})
    all_usage = json.loads(env.admin("GET", "/usage").body)["data"]
    queries = ["", *(f"?key_id={row['key_id']}" for row in all_usage)]
    with env.measured():
        replies = [env.ask("GET", f"/usage{query}") for query in queries]
    pages = [json.loads(reply.body)["data"] for reply in replies if reply.status == 200]
    key_ids = {row["key_id"] for rows in pages for row in rows}
    assert len(key_ids) <= 1, f"the usage of {len(key_ids)} keys"


def _displacing_stored_responses(env: AttackEnvironment) -> None:
    """So many own responses that others' might be evicted."""
    name = make(env.as_victim)
    body = {"model": MODEL, "input": "x " * 2000, "max_output_tokens": 1, "truncation": "auto"}
    large = json.dumps({**body, "input": [{"role": "user", "content": "y"}], "metadata": {"a": "b" * 500}})
    with env.measured():
        for number in range(300):
            env.ask("POST", RESPONSES, large.replace('"y"', f'"y{number}"').encode())
    _is_untouched(env, name)


ATTACKS = (
    _taking("reading", "GET", f"{RESPONSES}/{{id}}"),
    _taking("listing the items of", "GET", f"{RESPONSES}/{{id}}/input_items"),
    _taking("continuing", "POST", RESPONSES, {"model": MODEL, "input": "x", "previous_response_id": "{id}"}),
    _taking("cancelling", "POST", f"{RESPONSES}/{{id}}/cancel"),
    _taking("deleting", "DELETE", f"{RESPONSES}/{{id}}"),
    attack("key", _ids_near_ones_own),
    attack("key", _overwriting_by_the_same_request_id),
    attack("key", _claiming_to_be_another),
    attack("key", _ending_anothers_request),
    attack("key", _reading_anothers_usage),
    attack("key", _displacing_stored_responses),
)
