"""Ollama's API of a whole Berth with fake engines: lists, keys, errors, loading, aliases, the second port."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.access.keys import Access
from api.access.ollama_routes import FOR_ADMINS, FOR_REQUESTS
from api.auth import required_access
from tests.berth_process import ROOT, BerthProcess, free_port, running_berth
from tests.fake_engine import command

pytestmark = pytest.mark.timeout(120)

USER = [{"role": "user", "content": "Hello"}]
WAIT_S = 20.0


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    folder: Path = tmp_path_factory.mktemp("ollama")
    models = {
        "plain": {"command": command("--chunk-delay", "0"), "aliases": ["other"]},
        "set": {"command": command(), "aliases": ["calm"], "alias_params": {"calm": {"top_p": 0.5}}},
        "secret": {"command": command("--chunk-delay", "0"), "aliases": ["veiled"], "unlisted": True},
        "late": {"command": command("--slow-start", "0.6", "--chunk-delay", "0")},
        "doomed": {"command": command("--slow-start", "0.5", "--fail-with", "CUDA out of memory")},
        "story": {"path": str(ROOT / "models" / "berth-demo"), "max_model_len": 512},
    }
    (folder / "models.yaml").write_text(json.dumps({"models": models}))
    keys = folder / "keys"
    keys.write_text("narrow: narrow-key models=plain\nslow: slow-key rate=1/h burst=1\n")
    keys.chmod(0o600)
    settings = {
        "MODELS_FILE": str(folder / "models.yaml"),
        "MODEL_DIRS": str(folder),
        "HF_HOME": str(folder / "hf"),
        "API_KEYS_FILE": str(keys),
        "API_KEYS": "user-key",
        "ADMIN_API_KEYS": "admin-key",
        "MAX_BODY_MB": "1",
        "STREAM_KEEPALIVE": "0.1",
        "OLLAMA_PORT": str(free_port()),
        "ACCESS_LOG": "true",
    }
    with running_berth(folder, **settings) as berth:
        berth.ollama_url = f"http://127.0.0.1:{settings['OLLAMA_PORT']}"  # type: ignore[attr-defined]
        berth.models_file = folder / "models.yaml"  # type: ignore[attr-defined]
        yield berth


def client_of(berth: BerthProcess, key: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=berth.url, headers=headers, trust_env=False, timeout=60)


@pytest.fixture
def user(berth: BerthProcess) -> Iterator[httpx.Client]:
    with client_of(berth, "user-key") as client:
        yield client


@pytest.fixture
def admin(berth: BerthProcess) -> Iterator[httpx.Client]:
    with client_of(berth, "admin-key") as client:
        yield client


def loaded(client: httpx.Client) -> dict[str, Any]:
    return {one["name"]: one for one in client.get("/api/ps").json()["models"]}


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# What there is.


def test_tags_list_every_name_of_every_model(user: httpx.Client) -> None:
    models = {one["name"]: one for one in user.get("/api/tags").json()["models"]}
    assert models.keys() >= {"plain:latest", "other:latest", "late:latest", "story:latest"}
    story = models["story:latest"]
    assert story["model"] == "story:latest"
    assert story["size"] > 6_000_000
    assert len(story["digest"]) == 64
    assert datetime.fromisoformat(story["modified_at"]) < datetime.now(UTC)
    assert story["details"] == {
        "parent_model": "",
        "format": "safetensors",
        "family": "qwen3",
        "families": ["qwen3"],
        "parameter_size": "3.35M",
        "quantization_level": "BF16",
    }
    assert models["other:latest"]["digest"] == models["plain:latest"]["digest"]
    assert models["plain:latest"]["size"] == 0


def test_show_describes_a_model_as_it_is_served(user: httpx.Client) -> None:
    shown = user.post("/api/show", content=b'{"name": "story:latest"}').json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["model_info"]["general.architecture"] == "qwen3"
    assert shown["model_info"]["general.parameter_count"] == 3_345_664
    assert shown["model_info"]["qwen3.context_length"] == 512
    assert shown["model_info"]["qwen3.embedding_length"] == 192
    assert "{%-" in shown["template"]
    assert dict(line.split() for line in shown["parameters"].splitlines())["temperature"] == "0.3"
    assert shown["details"]["family"] == "qwen3"
    assert user.post("/api/show", json={"model": "plain"}).json()["capabilities"] == ["completion"]


def test_the_version_is_of_ollamas_api(user: httpx.Client) -> None:
    version = user.get("/api/version").json()["version"]
    assert [part.isdigit() for part in version.split(".")] == [True, True, True]
    assert user.head("/api/version").status_code == 200


def test_the_sign_of_life(berth: BerthProcess) -> None:
    """No key is needed. On Berth's port browsers get a page."""
    with httpx.Client(trust_env=False) as client:
        for url in (berth.url, berth.ollama_url):  # type: ignore[attr-defined]
            got = client.get(url)
            assert (got.status_code, got.text) == (200, "Ollama is running")
            head = client.head(url)
            assert (head.status_code, head.content) == (200, b"")
        html = {"accept": "text/html,*/*;q=0.8"}
        assert client.get(berth.url, headers=html).headers["location"] == "docs"
        assert client.get(berth.ollama_url, headers=html).text == "Ollama is running"  # type: ignore[attr-defined]
        assert client.get(f"{berth.ollama_url}/api/tags").status_code == 401  # type: ignore[attr-defined]
        headers = {"authorization": "Bearer user-key"}
        models = client.get(f"{berth.ollama_url}/v1/models", headers=headers)  # type: ignore[attr-defined]
        assert models.status_code == 200


# Requests.


def test_an_answer_streamed_and_whole(user: httpx.Client) -> None:
    """Without a content type, as curl sends it."""
    body = {"model": "plain:latest", "prompt": "a", "raw": True, "options": {"num_predict": 3}}
    with user.stream("POST", "/api/generate", content=json.dumps(body).encode()) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert "".join(line["response"] for line in lines) == " token0 token1 token2"
    assert lines[-1]["done_reason"] == "length"
    whole = user.post("/api/generate", json={**body, "model": "other", "stream": False}).json()
    assert (whole["model"], whole["response"], whole["eval_count"]) == ("other", " token0 token1 token2", 3)
    assert 0 < whole["eval_duration"] < whole["total_duration"]


def test_the_access_log_has_the_clients_path(berth: BerthProcess, user: httpx.Client) -> None:
    answer = user.post("/api/chat", json={"model": "plain", "messages": USER})
    request_id = answer.headers["x-request-id"]
    eventually(lambda: request_id in berth.output())
    (line,) = (one for one in berth.output().splitlines() if request_id in one)
    assert '"POST /api/chat" 200' in line and "model plain" in line


def test_a_stream_that_waits_for_its_model_shows_life(user: httpx.Client, admin: httpx.Client) -> None:
    admin.post("/models/late/stop")
    body = {"model": "late", "prompt": "a", "raw": True, "options": {"num_predict": 1}}
    with user.stream("POST", "/api/generate", json=body) as answer:
        text = answer.read().decode()
    assert text.startswith("  ")
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    assert lines[-1]["done"] and lines[-1]["load_duration"] > 0.4e9
    admin.post("/models/late/stop")
    whole = user.post("/api/generate", json={**body, "stream": False})
    assert whole.content.startswith(b"{")
    assert whole.json()["load_duration"] > 0.4e9


def test_a_failed_start_is_an_error_line_or_a_status(user: httpx.Client) -> None:
    body = {"model": "doomed", "messages": USER}
    with user.stream("POST", "/api/chat", json=body) as answer:
        *_, last = answer.read().decode().rstrip("\n").split("\n")
    assert "out_of_memory" in json.loads(last)["error"]
    whole = user.post("/api/chat", json={**body, "stream": False})
    assert (whole.status_code, whole.json().keys()) == (503, {"error"})


def test_loading_and_unloading(user: httpx.Client) -> None:
    assert user.post("/api/generate", json={"model": "plain"}).json()["done_reason"] == "load"
    entry = loaded(user)["plain:latest"]
    assert datetime.fromisoformat(entry["expires_at"]) > datetime.now(UTC)
    assert (entry["size_vram"], entry["model"]) == (0, "plain:latest")
    answer = user.post("/api/chat", json={"model": "other:latest", "messages": [], "keep_alive": -1})
    assert answer.json()["done_reason"] == "load"
    assert datetime.fromisoformat(loaded(user)["plain:latest"]["expires_at"]).year > 2200
    answer = user.post("/api/generate", json={"model": "plain", "keep_alive": 0})
    assert answer.json()["done_reason"] == "unload"
    eventually(lambda: "plain:latest" not in loaded(user))


def test_a_model_that_was_unloaded_stays_when_it_is_loaded_again(user: httpx.Client) -> None:
    """`keep_alive: 0` was about the run that it ended."""
    for request in ({"model": "plain"}, {"model": "plain", "keep_alive": 0}):
        assert user.post("/api/generate", json=request).status_code == 200
    eventually(lambda: "plain:latest" not in loaded(user))
    user.post("/api/generate", json={"model": "plain"})
    minutes = (
        datetime.fromisoformat(loaded(user)["plain:latest"]["expires_at"]) - datetime.now(UTC)
    ).seconds / 60
    assert 5 < minutes < 11


def test_unloading_what_is_not_loaded_starts_nothing(user: httpx.Client, admin: httpx.Client) -> None:
    admin.post("/models/late/stop")
    answer = user.post("/api/generate", json={"model": "late", "keep_alive": "0s"})
    assert (answer.status_code, answer.json()["done_reason"]) == (200, "unload")
    assert admin.get("/models/late").json()["replicas"] == []


# Errors.


def error_of(answer: httpx.Response) -> tuple[int, str]:
    assert answer.json().keys() == {"error"}
    assert answer.headers["x-request-id"]
    return answer.status_code, answer.json()["error"]


def test_an_unknown_model(user: httpx.Client, admin: httpx.Client) -> None:
    missing = (404, "model 'nobody' not found")
    for path in ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"):
        assert error_of(user.post(path, json={"model": "nobody"})) == missing
    assert error_of(admin.request("DELETE", "/api/delete", json={"model": "nobody"})) == missing
    assert error_of(admin.post("/api/copy", json={"source": "nobody", "destination": "a"})) == missing


def test_every_layer_speaks_ollamas_dialect(berth: BerthProcess, user: httpx.Client) -> None:
    for path in ("/api/chat", "/api/show", "/api/tags"):
        with client_of(berth, "wrong") as stranger:
            status, message = error_of(stranger.post(path, json={"model": "plain"}))
            assert (status, "unknown API key" in message) == (401, True)
    assert error_of(user.get("/api/nothing"))[0] == 403
    assert error_of(user.post("/api/pull", json={"model": "a/b"}))[0] == 403
    assert error_of(user.get("/api/show"))[0] == 405
    assert error_of(user.post("/api/tags"))[0] == 405
    assert error_of(user.get("/api/chat"))[0] == 405
    long = b'{"model": "plain", "prompt": "' + b"x" * 2**20 + b'"}'
    assert error_of(user.post("/api/generate", content=long))[0] == 413
    assert error_of(user.post("/api/show", content=long))[0] == 413
    coded = user.post("/api/chat", content=b"x", headers={"content-encoding": "gzip"})
    assert error_of(coded)[0] == 400
    for path in ("/api/chat", "/api/show"):
        for body in (b"", b"{", b"[]", b'{"model": 5}'):
            assert error_of(user.post(path, content=body))[0] == 400, (path, body)
    with client_of(berth, "slow-key") as slow:
        slow.get("/api/tags")
        answer = slow.get("/api/tags")
        assert error_of(answer)[0] == 429 and int(answer.headers["retry-after"]) > 1


def test_an_embedding_by_a_model_that_generates_is_refused(user: httpx.Client) -> None:
    status, message = error_of(user.post("/api/embed", json={"model": "story", "input": "a"}))
    assert (status, "generates text" in message) == (400, True)


# Keys.


def test_every_route_has_its_access() -> None:
    inference = FOR_REQUESTS | {b"/api/chat", b"/api/generate", b"/api/embed", b"/api/embeddings"}
    for path in inference:
        assert required_access(path, inference) is Access.INFERENCE
    for path in (*FOR_ADMINS, b"/api/blobs/sha256:0", b"/api", b"/api/tags/", b"/api/other"):
        assert required_access(path, inference) is Access.ADMIN, path
    assert required_access(b"/", method="GET") is Access.OPEN
    assert required_access(b"/", method="POST") is Access.ADMIN


def test_a_key_for_some_models_sees_only_those(berth: BerthProcess) -> None:
    with client_of(berth, "narrow-key") as narrow:
        names = {one["name"] for one in narrow.get("/api/tags").json()["models"]}
        assert names == {"plain:latest", "other:latest"}
        assert error_of(narrow.post("/api/show", json={"model": "story"}))[0] == 404
        assert error_of(narrow.post("/api/generate", json={"model": "story"}))[0] == 403
        assert error_of(narrow.post("/api/chat", json={"model": "story", "messages": USER}))[0] == 403
        narrow.post("/api/generate", json={"model": "plain"})
        assert loaded(narrow).keys() == {"plain:latest"}


def test_an_unlisted_model_is_used_but_not_listed(user: httpx.Client, admin: httpx.Client) -> None:
    for name in ("secret", "veiled"):
        assert user.post("/api/chat", json={"model": name, "messages": USER}).status_code == 200
    for client in (user, admin):
        names = {one["name"] for one in client.get("/api/tags").json()["models"]}
        assert not names & {"secret:latest", "veiled:latest"} and "plain:latest" in names
    assert "secret:latest" not in loaded(user)
    assert "secret:latest" in loaded(admin), "an admin sees what runs"


# Managing models.


def test_a_copy_is_an_alias_and_can_be_deleted(berth: BerthProcess, admin: httpx.Client) -> None:
    file: Path = berth.models_file  # type: ignore[attr-defined]
    body = {"source": "plain:latest", "destination": "twin:latest"}
    for _ in range(2):  # again: nothing changes
        assert admin.post("/api/copy", json=body).status_code == 200
    assert "twin" in file.read_text()
    models = {one["name"]: one["digest"] for one in admin.get("/api/tags").json()["models"]}
    assert models["twin:latest"] == models["plain:latest"]
    taken = admin.post("/api/copy", json={"source": "plain", "destination": "story"})
    assert error_of(taken)[0] == 409
    assert error_of(admin.post("/api/copy", json={"source": "plain"}))[0] == 400
    assert admin.request("DELETE", "/api/delete", json={"name": "twin:latest"}).status_code == 200
    assert "twin" not in file.read_text()
    assert error_of(admin.post("/api/show", json={"model": "twin"}))[0] == 404
    assert "plain:latest" in {one["name"] for one in admin.get("/api/tags").json()["models"]}


def test_a_copy_of_an_alias_sets_its_fields_and_both_can_be_deleted(
    berth: BerthProcess, admin: httpx.Client
) -> None:
    file: Path = berth.models_file  # type: ignore[attr-defined]
    admin.post("/api/copy", json={"source": "calm", "destination": "calmer"}).raise_for_status()
    for name in ("calm", "calmer"):
        answer = admin.post("/v1/echo", json={"model": name})
        assert json.loads(answer.json()["body"])["top_p"] == 0.5, name
    for name in ("calm", "calmer"):
        assert admin.request("DELETE", "/api/delete", json={"model": name}).status_code == 200
    assert "calm" not in file.read_text()


def test_what_berth_did_not_download_is_not_deleted(admin: httpx.Client) -> None:
    status, message = error_of(admin.request("DELETE", "/api/delete", json={"model": "story"}))
    assert (status, "didn't download" in message) == (409, True)


def test_a_pull_of_what_is_here_succeeds_at_once(admin: httpx.Client) -> None:
    answer = admin.post("/api/pull", json={"model": "story"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["status"] for line in answer.text.splitlines()] == [
        "pulling manifest",
        "success",
    ]
    assert admin.post("/api/pull", json={"model": "story", "stream": False}).json() == {"status": "success"}
    status, message = error_of(admin.post("/api/pull", json={"model": "llama3.2"}))
    assert (status, "owner/name" in message) == (400, True)


def test_a_second_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        berth = BerthProcess(tmp_path, OLLAMA_PORT=port)
        try:
            assert berth.wait() == 1
            assert f"OLLAMA_PORT={port}: can't listen: Address already in use" in berth.output()
        finally:
            berth.close()


def test_what_berth_does_not_do_is_refused_with_a_reason(admin: httpx.Client) -> None:
    for path in ("/api/create", "/api/push", "/api/blobs/sha256:00"):
        status, message = error_of(admin.post(path, json={"model": "a", "from": "plain"}))
        assert (status, "not supported" in message) == (400, True)
