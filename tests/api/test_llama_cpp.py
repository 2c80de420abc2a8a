"""llama.cpp's model management on a real Berth: the requests that its clients send, in its own words."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.model_feed import following
from tests.api.test_gateway import ask, berth_with, client_of
from tests.berth_process import BerthProcess
from tests.fake_engine import command, write_fake_python
from tests.fake_hub import WAIT_S, FakeHub, running_hub

pytestmark = pytest.mark.timeout(120)

ADMIN, USER, LIMITED = "key-of-an-admin", "key-of-a-user", "key-for-plain"
KEYS = f"ops: {ADMIN} admin\nuser: {USER}\nlimited: {LIMITED} models=plain\n"
NAMES = ("load", "unload", "sse", "pull")


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory, hub: FakeHub) -> Iterator[BerthProcess]:
    folder = tmp_path_factory.mktemp("llama")
    (folder / "keys").write_text(KEYS)
    (folder / "keys").chmod(0o600)
    python = write_fake_python(folder / "python")
    plain = {"command": command()}
    sleepy = {"engine": "vllm", "path": str(folder), "params": {"enable_sleep_mode": True}}
    catalog: dict[str, Any] = {
        **dict.fromkeys(("plain", "second", *NAMES), plain),
        "slow": {"command": command("--slow-start", "30")},
        "broken": {"command": command("--fail-with", "no", "--exit-code", "7")},
        "sleepy": sleepy,
        "llama": {"command": _llama_server(folder)},
    }
    settings = {
        "API_KEYS_FILE": str(folder / "keys"),
        "VLLM_PYTHON": python,
        "HF_HOME": str(folder / "hf"),
        "HF_ENDPOINT": hub.url,
        "RESTART_POLICY": "never",
    }
    with berth_with(folder, catalog, **settings) as berth:
        yield berth


def _llama_server(folder: Path) -> list[str]:
    """The fake engine under the program name that llama.cpp's server has."""
    program = folder / "llama-server"
    python, *rest = command("--llama")
    program.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    program.chmod(0o755)
    return [str(program), *rest]


def client_for(berth: BerthProcess, key: str = ADMIN) -> httpx.Client:
    client = client_of(berth)
    client.headers["Authorization"] = f"Bearer {key}"
    return client


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    with client_for(berth) as client:
        yield client
        client.get("/unload").raise_for_status()


def listed(client: httpx.Client, path: str = "/models") -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in client.get(path).json()["data"]}


def status_of(client: httpx.Client, model: str) -> dict[str, Any]:
    """Equal in all lists; a process may appear meanwhile."""
    shown: dict[str, Any] = listed(client)[model]["status"]
    others = (listed(client, "/v1/models")[model], client.get(f"/v1/models/{model}").json())
    assert {one["status"]["value"] for one in others} == {shown["value"]}
    return shown


def test_load_and_unload_as_open_webui_does(client: httpx.Client, berth: BerthProcess) -> None:
    """Its requests: list below /v1, load and unload outside; `status.value` says what is loaded."""
    assert status_of(client, "plain") == {"value": "unloaded"}
    with following(berth, ADMIN) as feed:
        assert client.post("/models/load", json={"model": "plain"}).json() == {"success": True}
        assert feed.statuses("plain", "loaded") == ["loading", "loaded"]
        loaded = status_of(client, "plain")
        assert loaded["value"] == "loaded" and "--port" in loaded["args"]
        assert listed(client)["plain"]["state"] == "running", "Berth's own word"
        again = client.post("/models/load", json={"model": "plain"})
        assert (again.status_code, "already running" in again.text) == (400, True)
        assert client.post("/models/unload", json={"model": "plain"}).json() == {"success": True}
        gone = feed.next("model_status", "plain")
        assert gone["data"] == {"status": "unloaded", "exit_code": 0}
    assert status_of(client, "plain") == {"value": "unloaded"}
    refused = client.post("/models/unload", json={"model": "plain"})
    assert (refused.status_code, "not running" in refused.text) == (400, True)


def test_the_loaded_event_describes_the_model(client: httpx.Client, berth: BerthProcess) -> None:
    with following(berth, ADMIN) as feed:
        assert ask(client, "second").status_code == 200, "loaded by a request"
        feed.next("model_status", "second")
        loaded = feed.next("model_status", "second")
    assert loaded["data"]["info"]["id"] == "second"
    assert loaded["data"]["info"]["status"]["value"] == "loaded"
    assert "path" not in loaded["data"]["info"]


def test_a_failed_start_is_unloaded_with_its_exit_code(client: httpx.Client, berth: BerthProcess) -> None:
    with following(berth, ADMIN) as feed:
        client.post("/models/load", json={"model": "broken"}).raise_for_status()
        assert feed.next("model_status", "broken")["data"] == {"status": "loading"}
        assert feed.next("model_status", "broken")["data"] == {"status": "unloaded", "exit_code": 7}
    deadline = time.monotonic() + WAIT_S
    while "failed" not in status_of(client, "broken"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert status_of(client, "broken") == {"value": "unloaded", "failed": True, "exit_code": 7}
    assert client.post("/models/load", json={"model": "broken"}).status_code == 200, "tried again at once"


def test_unload_ends_a_load(client: httpx.Client, berth: BerthProcess) -> None:
    with following(berth, ADMIN) as feed:
        client.post("/models/load", json={"model": "slow"}).raise_for_status()
        assert feed.next("model_status", "slow")["data"] == {"status": "loading"}
        assert status_of(client, "slow")["value"] == "loading"
        assert client.post("/models/load", json={"model": "slow"}).status_code == 400
        client.post("/models/unload", json={"model": "slow"}).raise_for_status()
        assert feed.statuses("slow", "unloaded") == ["unloaded"]


def test_a_sleeping_model_can_be_loaded(client: httpx.Client, berth: BerthProcess) -> None:
    client.post("/models/sleepy/start", params={"wait": 30}).raise_for_status()
    with following(berth, ADMIN) as feed:
        client.post("/models/sleepy/sleep").raise_for_status()
        assert feed.next("model_status", "sleepy")["data"] == {"status": "sleeping"}
        assert status_of(client, "sleepy")["value"] == "sleeping"
        client.post("/models/load", json={"model": "sleepy"}).raise_for_status()
        assert feed.statuses("sleepy", "loaded") == ["loading", "loaded"]


def test_bodies_are_json_whatever_their_type(client: httpx.Client) -> None:
    """`curl -d` says that it sends a form."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    sent = client.post("/models/load", content=b'{"model": "plain", "extra_args": []}', headers=form)
    assert (sent.status_code, "extra_args" in sent.headers["warning"]) == (200, True)
    for content, status in ((b"", 400), (b"{", 400), (b"[]", 422), (b"{}", 422), (b'{"model": 3}', 422)):
        refused = client.post("/models/unload", content=content, headers=form)
        assert (refused.status_code, bool(refused.json()["error"]["message"])) == (status, True), content
    assert client.post("/models/load", json={"model": "none"}).status_code == 404
    assert client.post("/models/unload", json={"model": None}).status_code == 422


def test_models_may_have_the_routes_names(client: httpx.Client, berth: BerthProcess) -> None:
    for name in NAMES:
        client.post("/models/load", json={"model": name}).raise_for_status()
        client.post(f"/models/{name}/start", params={"wait": 30}).raise_for_status()
        assert client.get(f"/models/{name}").json()["name"] == name
        assert client.get(f"/v1/models/{name}").json()["state"] == "running"
        assert ask(client, name).status_code == 200
        client.post("/models/unload", json={"model": name}).raise_for_status()
    with following(berth, ADMIN) as feed:  # it accepts text/event-stream
        client.post("/models/sse/start").raise_for_status()
        assert feed.next("model_status", "sse")["data"] == {"status": "loading"}


def test_keys_for_requests_read_what_they_may_use(berth: BerthProcess) -> None:
    posts = ("/models/load", "/models/unload", "/models", "/unload", "/api/models/unload/plain")
    for key, allowed in ((USER, {"plain", "second"}), (LIMITED, {"plain"})):
        with client_for(berth, key) as client:
            shown = listed(client)
            assert (shown.keys() >= allowed, "plain" in shown) == (True, True)
            assert key is USER or shown.keys() == {"plain"}
            for entry in shown.values():
                assert not entry.keys() & {"path", "params", "model"} and "args" not in entry["status"]
            for path in posts:
                assert client.post(path, json={"model": "plain"}).status_code == 403, path
            for path in ("/unload", "/logs", "/logs/stream"):
                assert client.get(path).status_code == 403, path
            assert client.delete("/models", params={"model": "plain"}).status_code == 403
            assert client.get("/props").json()["role"] == "router"
    with client_for(berth, LIMITED) as client:
        assert client.get("/props", params={"model": "plain"}).status_code == 200
        assert client.get("/props", params={"model": "second"}).status_code == 404
        assert client.get("/slots", params={"model": "second"}).status_code == 404
    with httpx.Client(base_url=berth.url, trust_env=False) as client:
        for path in ("/models", "/models/sse", "/props", "/slots", "/running", "/api/v1/models"):
            assert client.get(path).status_code == 401, path


def test_the_feed_tells_a_key_of_its_models_only(berth: BerthProcess, client: httpx.Client) -> None:
    with following(berth, LIMITED) as feed:
        for name in ("second", "plain"):
            client.post("/models/load", json={"model": name}).raise_for_status()
        assert feed.next()["model"] == "plain"


def test_props_of_berth_and_of_models(client: httpx.Client) -> None:
    router = client.get("/props").json()
    assert (router["role"], router["models_autoload"], router["max_instances"]) == ("router", True, 5)
    demo = client.get("/props", params={"model": "berth-demo"}).json()
    assert demo["default_generation_settings"]["n_ctx"] == 2048
    assert demo["modalities"] == {"vision": False, "audio": False}
    assert "enable_thinking" in demo["chat_template"]
    assert status_of(client, "berth-demo")["value"] == "unloaded", "reading starts nothing"
    assert client.get("/props", params={"model": "none"}).status_code == 404


def test_props_without_autoload_tell_whether_a_model_is_loaded(client: httpx.Client) -> None:
    """Clients poll them after a load."""
    for name, status in (("plain", 400), ("slow", 400)):
        wish = {"model": name, "autoload": "false"}
        assert client.get("/props", params=wish).status_code == status
        client.post("/models/load", json={"model": name}).raise_for_status()
    assert client.get("/props", params={"model": "slow", "autoload": "false"}).status_code == 503
    assert client.get("/slots", params={"model": "slow"}).status_code == 503
    ask(client, "plain")
    assert client.get("/props", params={"model": "plain", "autoload": "false"}).json()["is_sleeping"] is False


def test_a_running_llama_cpp_answers_itself(client: httpx.Client) -> None:
    before = client.get("/props", params={"model": "llama"}).json()
    assert before["default_generation_settings"]["n_ctx"] == 0
    refused = client.get("/slots", params={"model": "llama"})
    assert (refused.status_code, "not loaded" in refused.text) == (400, True)
    props = client.get("/props", params={"model": "llama", "autoload": "true"}).json()
    assert (props["total_slots"], status_of(client, "llama")["value"]) == (4, "loaded")
    assert client.get("/slots", params={"model": "llama"}).json()[0]["id"] == 0
    ask(client, "plain")
    absent = client.get("/slots", params={"model": "plain"})
    assert (absent.status_code, absent.json()["error"]["type"]) == (501, "not_supported_error")
    assert client.get("/slots").status_code == 400
    failed = client.get("/props", params={"model": "broken", "autoload": "1"})
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "instance_failed")


def test_what_the_files_tell_is_shown_and_nothing_else(client: httpx.Client) -> None:
    for path in ("/models", "/v1/models"):
        demo, plain = (listed(client, path)[name] for name in ("berth-demo", "plain"))
        assert demo["architecture"] == {"input_modalities": ["text"], "output_modalities": ["text"]}
        assert demo["capabilities"] == {
            "context_length": 2048, "vision": False, "tools": True, "reasoning": True,
            "embeddings": False, "rerank": False,
        }  # fmt: skip
        assert demo["in_cache"] is False
        assert Path(demo["path"]).name == "berth-demo"
        assert not plain.keys() & {
            "architecture",
            "capabilities",
            "context_length",
            "meta",
            "in_cache",
            "path",
        }


def test_a_download_in_the_background(client: httpx.Client, berth: BerthProcess, hub: FakeHub) -> None:
    name = "berth/demo"
    hub.stall_at = 2**20
    with following(berth, ADMIN) as feed:
        assert client.post("/models", json={"model": name}).json() == {"success": True}
        assert hub.stalled.wait(WAIT_S)
        progress: dict[str, Any] = {}
        while "model.safetensors" not in progress:
            progress = feed.next("download_progress", name)["data"]["progress"]
        shown = listed(client)[name]
        assert (shown["status"]["value"], shown["state"]) == ("downloading", "downloading")
        assert set(shown["status"]["progress"]["model.safetensors"]) == {"done", "total"}
        assert name not in listed(client, "/v1/models"), "it can't be requested yet"
        client.post("/models/unload", json={"model": name}).raise_for_status()
        while name in listed(client):
            time.sleep(0.02)
        hub.stall_at = None
        hub.go_on.set()
        client.post("/models", json={"model": name}).raise_for_status()
        assert feed.next("download_finished", name) == {"model": name, "event": "download_finished"}
        assert feed.next("models_reload")["model"] == "*"
    entry = listed(client)[name]
    assert (entry["status"], entry["in_cache"]) == ({"value": "unloaded"}, True)
    assert client.post("/models", json={"model": name}).status_code == 400, "already there"
    with following(berth, ADMIN) as feed:
        assert client.delete("/models", params={"model": name}).json() == {"success": True}
        assert feed.next("model_remove", name) == {"model": name, "event": "model_remove"}
    assert name not in listed(client)


def test_a_download_that_fails_says_so(client: httpx.Client, berth: BerthProcess) -> None:
    with following(berth, ADMIN) as feed:
        client.post("/models", json={"model": "berth/none"}).raise_for_status()
        assert feed.next("download_failed", "berth/none")["event"] == "download_failed"
    assert client.post("/models", json={"model": "../etc"}).status_code == 422
    assert client.delete("/models", params={"model": "berth/none"}).status_code == 404
    refused = client.delete("/models", params={"model": "berth-demo"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_not_downloaded")


def test_the_feed_ends_with_berth(tmp_path: Path) -> None:
    with berth_with(tmp_path, {}) as berth, berth.client() as client:
        with client.stream("GET", "/models/sse") as response:
            berth.terminate()
            assert list(response.iter_lines()) == []
        assert berth.wait() == 0


def test_the_catalogs_change_is_told(tmp_path: Path) -> None:
    with berth_with(tmp_path, {}) as berth, client_of(berth) as client, following(berth) as feed:
        (tmp_path / "models.yaml").write_text(json.dumps({"models": {"new": {"command": command()}}}))
        client.post("/reload").raise_for_status()
        assert feed.next()["event"] == "models_reload"
