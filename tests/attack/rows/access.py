"""Admin routes and engines' internals, attacked with a request key or without a key."""

from __future__ import annotations

from tests.attack.attack import attack
from tests.attack.environment import DEMO, MODEL, SECRET, AttackEnvironment
from tests.attack.rows.tenants import BOTH_WAYS, by

# Routes of our engine, vLLM and llama.cpp that affect all of an engine's clients, or reveal them.
STEERING = (
    "sleep", "wake_up", "is_sleeping", "memory", "abort_requests", "inference/v1/abort_requests", "metrics",
    "pause", "resume", "reset_prefix_cache", "reset_mm_cache", "collective_rpc", "scale_elastic_ep",
    "start_profile", "stop_profile", "server_info", "load", "v1/load_lora_adapter", "v1/unload_lora_adapter",
    "update_weights", "slots", "slots/0?action=erase", "props", "lora-adapters", "models/load",
)  # fmt: skip
SPELLINGS = (
    "/{}", "//{}", "/./{}", "/v1/../{}", "/v1/%2e%2e/{}", "/%2f{}", "/{};x=y", "/\\{}", "/{}/", "/{}%00",
    "/x/..;/{}", "/{}%3fx", "/%2e/{}", "/v1/models/../../{}", "/{}%20", "/{}#/v1/completions",
)  # fmt: skip
SHUT = (400, 403, 404, 405)


def _escaped(name: str, times: int) -> str:
    """The name with its first letter as %XX, and the per cent sign escaped again."""
    return "%" + "25" * (times - 1) + f"{ord(name[0]):02x}" + name[1:]


def _spellings(name: str) -> list[str]:
    return [
        *(one.format(name) for one in SPELLINGS),
        "/" + name.upper(),
        *("/" + _escaped(name, times) for times in (1, 2, 3)),
    ]


def _control_routes_of_the_engine_in_twenty_spellings(env: AttackEnvironment) -> None:
    with env.measured():
        for name in STEERING:
            for path in _spellings(name):
                reply = env.ask("POST", f"/proxy/{DEMO}{path}", b"{}", timeout_s=10)
                assert reply.status in SHUT, f"{path}: {reply}"


def _the_same_by_get_and_by_name(env: AttackEnvironment) -> None:
    with env.measured():
        for name in STEERING:
            for path in (f"/{name}", f"/v1/{name}", f"/v1/../{name}", f"//{name}"):
                for method, target in (("GET", f"/proxy/{DEMO}{path}"), ("POST", f"{path}?model={MODEL}")):
                    reply = env.ask(method, target, timeout_s=10)
                    assert reply.status in SHUT, f"{method} {target}: {reply}"


BERTHS_OWN = (
    ("GET", "/instances"), ("POST", "/instances"), ("GET", f"/instances/{DEMO}"),
    ("DELETE", f"/instances/{DEMO}"), ("PATCH", f"/instances/{DEMO}"), ("POST", f"/instances/{DEMO}/stop"),
    ("POST", f"/instances/{DEMO}/sleep"), ("POST", f"/instances/{DEMO}/restart"),
    ("GET", f"/instances/{DEMO}/logs"), ("POST", f"/models/{MODEL}/stop"), ("POST", "/models/cold/start"),
    ("POST", f"/models/{MODEL}/sleep"), ("PATCH", f"/models/{MODEL}"), ("POST", "/models/pull"),
    ("POST", "/models/unload"), ("POST", "/models"), ("GET", "/unload"), ("GET", "/events"),
    ("GET", "/metrics"), ("GET", "/info"), ("POST", "/reload"), ("GET", "/gpus"), ("GET", "/logs"),
)  # fmt: skip


def _berths_own_control_routes(env: AttackEnvironment) -> None:
    with env.measured():
        for method, path in BERTHS_OWN:
            for target in (path, f"/{path}", f"/./{path[1:]}", path + "/", "/%69" + path[2:]):
                reply = env.ask(method, target, b"{}" if method != "GET" else None, timeout_s=5)
                assert reply.status in SHUT, f"{method} {target}: {reply}"


def _without_a_key(env: AttackEnvironment) -> None:
    with env.measured():
        for method, path in (*BERTHS_OWN, ("POST", "/v1/completions"), ("GET", f"/proxy/{DEMO}/v1/models")):
            for key in (None, "", "x", "Bearer", env.victim_key[:-1]):
                reply = env.ask(method, path, key="none" if key == "" else key, timeout_s=5)
                assert reply.status in (401, 404), f"{method} {path}: {reply}"


def _a_get_that_starts_a_model(env: AttackEnvironment) -> None:
    with env.measured():
        for target in (
            "/v1/completions?model=cold",
            "/v1/models?model=cold",
            "/v1/x?model=cold",
            "/v1/responses/resp_x?model=cold",
        ):
            reply = env.ask("GET", target, timeout_s=15)
            assert reply.status >= 400 or b'"list"' in reply.body, f"{target}: {reply}"
    found = env.admin("GET", "/instances?all=true")
    assert b"cold" not in found.body, "it was started"


def _the_log_of_a_start_that_fails(env: AttackEnvironment) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "model": "failing"}
    with env.measured():
        replies = [
            env.ask("POST", path, {**body, **more}, timeout_s=15)
            for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/generate")
            for more in ({}, {"stream": True})
        ]
        replies += [env.ask("GET", path) for path in ("/v1/models", "/v1/models/failing")]
    leaking = [reply for reply in replies if SECRET.encode() in reply.body]
    assert not leaking, f"its log is revealed: {leaking[0]}"


def _keys_in_paths_and_queries_are_logged(env: AttackEnvironment) -> None:
    """Failing requests, which are logged."""
    key = env.attacker_key
    with env.measured():
        for target in (
            f"/proxy/failing/v1/completions?api_key={key}",
            f"/proxy/{DEMO}/nowhere;api_key={key}/x?token={key}",
            f"/v1/completions?model=failing&key={key}",
            f"/proxy/none/x%3faccess_token%3d{key}",
            f"/proxy/{DEMO}/v1/completions#{key}",
        ):
            env.ask("POST", target, {"prompt": "x", "model": "failing", "max_tokens": 1}, timeout_s=10)
        protocols = f"openai-insecure-api-key.{key}"
        env.ask(
            "GET",
            f"/proxy/failing/v1/realtime?api_key={key}",
            sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
            sec_websocket_protocol=protocols,
            sec_websocket_version="13",
            connection="Upgrade",
            upgrade="websocket",
        )
    found = env.keys_in_logs()
    assert not found, ", ".join(found)


def _values_that_are_no_numbers(env: AttackEnvironment) -> None:
    """Each of them once caused a 500 in Berth or the engine."""
    digits = b"9" * 400
    fields = (
        b'"keep_alive":' + digits, b'"keep_alive":-' + digits, b'"keep_alive":"' + digits + b'h"',
        b'"keep_alive":1e400', b'"keep_alive":NaN', b'"repetition_penalty":1e-300',
        b'"repetition_penalty":1e300', b'"temperature":1e-300', b'"temperature":1e308', b'"top_p":1e-320',
        b'"min_p":1e-320', b'"presence_penalty":-1e308', b'"frequency_penalty":1e308', b'"seed":' + digits,
        b'"max_tokens":' + digits, b'"n":' + digits, b'"top_k":' + digits, b'"stop":"\\ud800"',
        b'"logit_bias":{"5":1e308}', b'"logit_bias":{"' + digits + b'":1}', b'"length_penalty":1e308',
        b'"min_tokens":' + digits, b'"truncate_prompt_tokens":-' + digits, b'"priority":' + digits,
    )  # fmt: skip
    with env.measured():
        for text in fields:
            body = b'{"model":"' + MODEL.encode() + b'","prompt":"a","max_tokens":4,' + text + b"}"
            for way in BOTH_WAYS:
                reply = env.ask("POST", by(way, "/v1/completions"), body, timeout_s=10)
                assert reply.status in (200, 400), f"{text[:60]!r}: {reply}"


ATTACKS = (
    attack("key", _control_routes_of_the_engine_in_twenty_spellings),
    attack("key", _the_same_by_get_and_by_name),
    attack("key", _berths_own_control_routes),
    attack("nobody", _without_a_key),
    attack("key", _a_get_that_starts_a_model),
    attack("key", _the_log_of_a_start_that_fails),
    attack("key", _keys_in_paths_and_queries_are_logged),
    attack("key", _values_that_are_no_numbers),
)
