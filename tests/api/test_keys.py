"""Keys with limits on models and rates. The rules with a fake clock, then a real Berth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.access.keys import ANONYMOUS, Access, ApiKey, Caller, KeyRing, Rate, key_id_of
from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_grants_its_burst_at_once_and_then_its_rate() -> None:
    clock = Clock()
    rate = Rate(2.0, 3, clock)
    assert [rate.take_token() for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now += 0.5
    assert rate.take_token() == 0
    assert rate.take_token() == pytest.approx(0.5)
    clock.now += 3600
    assert [rate.take_token() for _ in range(4)] == [0, 0, 0, 0.5], "it saves no more than the burst"


def test_a_refused_request_takes_no_token() -> None:
    clock = Clock()
    rate = Rate(1.0, 1, clock)
    assert rate.take_token() == 0
    for _ in range(8):
        clock.now += 0.0625
        rate.take_token()
    clock.now += 0.5
    assert rate.take_token() == 0


@pytest.mark.parametrize(
    ("models", "names", "allowed"),
    [
        (None, ("any",), True),
        (("small",), ("small",), True),
        (("small",), ("Small",), False),
        (("small",), ("smaller",), False),
        (("qwen*",), ("qwen/Qwen3-8B",), True),
        (("gpt",), ("story", "gpt"), True),
        (("*",), (), False),
    ],
)
def test_models_by_name_alias_or_pattern(
    models: tuple[str, ...] | None, names: tuple[str, ...], allowed: bool
) -> None:
    assert Caller("x", Access.INFERENCE, models).may_use(names) is allowed


def test_a_ring_finds_the_caller_of_a_key() -> None:
    keys = [ApiKey("k1", Access.INFERENCE), ApiKey("k2", Access.ADMIN, "ops"), ApiKey("k2", Access.INFERENCE)]
    ring = KeyRing(keys)
    assert ring.find(b"k1").key_id == key_id_of("k1")
    assert (ring.find(b"k2").key_id, ring.find(b"k2").access) == ("ops", Access.ADMIN)
    assert ring.find(b"") is ring.find(b"k3") is ANONYMOUS
    assert "k1" not in repr(keys)
    assert len(key_id_of("k1")) == 8 and "k1" not in key_id_of("k1")


KEYS = """
anna: key-anna models=first
berta: key-berta models=sec*
carla: key-carla rate=2/h
ops: key-ops admin
"""


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    """Two models, `first` and `second`, a cached response of the first, and the keys above."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "keys").write_text(KEYS)
    (folder / "keys").chmod(0o600)
    with running_berth(folder, API_KEYS_FILE=str(folder / "keys"), RESPONSE_CACHE_MB="1") as berth:
        with client(berth, "ops") as ops:
            for name in ("first", "second"):
                spec = {"name": f"{name}-1", "model_name": name, "engine": "command", "command": command()}
                ops.post("/instances?wait=60", json=spec).raise_for_status()
            complete(ops, "first").raise_for_status()
        yield berth


def client(berth: BerthProcess, name: str) -> httpx.Client:
    headers = {"authorization": f"Bearer key-{name}"}
    return httpx.Client(base_url=berth.url, headers=headers, trust_env=False, timeout=60)


def complete(asked: httpx.Client, model: Any, **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": "x", "temperature": 0, **more}
    return asked.post("/v1/completions", json=body)


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_a_key_reaches_only_its_models_on_every_route(berth: BerthProcess) -> None:
    refused = (403, "model_not_allowed")
    with client(berth, "anna") as anna:
        assert complete(anna, "first").status_code == 200
        assert anna.get("/proxy/first-1/v1/models").status_code == 200
        for response in (
            complete(anna, "second"),
            complete(anna, "second", stream=True),
            complete(anna, "second", prompt="x" * 100_000),
            anna.get("/v1/models/first/../../responses/x?model=second"),
            anna.get("/v1/responses/r?model=second"),
            anna.post("/v1/audio/transcriptions", data={"model": "second"}, files={"file": b"x"}),
            anna.post("/generate", json={"prompt": "x", "model": "second"}),
            anna.post("/tokenize", json={"prompt": "x", "model": "second"}),
            anna.get("/proxy/second-1/v1/models"),
            anna.get("/proxy/%73econd-1/v1/models"),
            anna.get("/proxy/nobody/v1/models"),
        ):
            assert response.status_code == 403, response.text
            assert "second" in response.text or "nobody" in response.text
        assert error_of(complete(anna, "second")) == refused


def test_the_cache_does_not_bypass_the_limits(berth: BerthProcess) -> None:
    with client(berth, "berta") as berta:
        assert error_of(complete(berta, "first")) == (403, "model_not_allowed")
        assert complete(berta, "second").status_code == 200


def test_the_list_of_models_is_the_keys_own(berth: BerthProcess) -> None:
    with client(berth, "anna") as anna:
        assert [one["id"] for one in anna.get("/v1/models").json()["data"]] == ["first"]
        assert anna.get("/v1/models/first").status_code == 200
        assert anna.get("/v1/models/second").status_code == 404
    with client(berth, "ops") as ops:
        assert {"first", "second"} <= {one["id"] for one in ops.get("/v1/models").json()["data"]}


def test_a_429_says_when_to_retry(berth: BerthProcess) -> None:
    """On every route; a request that is checked twice counts once."""
    with client(berth, "carla") as carla:
        assert complete(carla, "first", temperature=1).status_code == 200
        assert carla.get("/v1/models").status_code == 200
        refused = complete(carla, "second")
        assert error_of(refused) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 1800
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert carla.get("/health").status_code == 200


def test_no_key_is_written_anywhere(berth: BerthProcess) -> None:
    with client(berth, "ops") as ops:
        pages = [ops.get(path).text for path in ("/instances?all=true", "/models", "/info", "/metrics")]
        pages.append(ops.get("/instances/first-1/logs").text)
    pages.append(berth.output())
    for name in ("anna", "berta", "carla", "ops"):
        assert not any(f"key-{name}" in page for page in pages)


def write(keys: Path, *lines: str) -> None:
    keys.write_text("\n".join(lines))
    keys.chmod(0o600)


def test_the_file_is_watched_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    """By `POST /reload` at once. Results cached with a connection's head do not outlast its key."""
    keys = tmp_path / "keys"
    write(keys, "ops: key-ops admin", "old: key-old", "slow: key-slow rate=2/h")
    with (
        running_berth(tmp_path, API_KEYS_FILE=str(keys)) as berth,
        client(berth, "ops") as ops,
        client(berth, "old") as old,
        client(berth, "new") as new,
        client(berth, "slow") as slow,
    ):
        spec = {"name": "it", "model_name": "m", "engine": "command", "command": command()}
        ops.post("/instances?wait=60", json=spec).raise_for_status()

        def statuses(*asked: httpx.Client) -> list[int]:
            return [complete(one, "m").status_code for one in asked]

        assert statuses(old, old, new, slow, slow, slow) == [200, 200, 401, 200, 200, 429]
        write(keys, "ops: key-ops admin", "new: key-new", "slow: key-slow rate=2/h")
        ops.post("/reload").raise_for_status()
        assert statuses(old, old, new, new, slow) == [401, 401, 200, 200, 429]

        write(keys, "ops: key-ops admin", "new: key-new models=other", "slow: key-slow rate=3/h", "oops")
        refused = ops.post("/reload")
        assert error_of(refused) == (422, "invalid_key_file")
        assert "line 4" in refused.json()["error"]["message"]
        assert "key-new" not in refused.text
        assert statuses(old, new, slow) == [401, 200, 429]
        keys.unlink()
        assert error_of(ops.post("/reload")) == (422, "invalid_key_file")

        write(keys, "ops: key-ops admin", "new: key-new models=other", "slow: key-slow rate=3/h")
        ops.post("/reload").raise_for_status()
        assert statuses(new, slow) == [403, 200]

        write(keys, "ops: key-ops admin", "old: key-old")
        deadline = time.monotonic() + 20
        while statuses(old, new) != [200, 401]:  # without a reload request
            assert time.monotonic() < deadline
            time.sleep(0.1)
        berth.wait_for_line("the API keys changed")
