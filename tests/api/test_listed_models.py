"""The list of `/v1/models`: all names that requests can use now, and no others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.api.test_gateway import ask, berth_with, client_of
from tests.fake_engine import command, write_fake_python

CATALOG: dict[str, Any] = {
    "stays": {"command": command(), "aliases": ["nick", "nick two"]},
    "goes": {"command": command(), "aliases": ["going"]},
    "broken": {"command": command("--fail-with", "no")},
}


def listed(client: httpx.Client) -> set[str]:
    """The listed names, checked against the single routes."""
    entries = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}
    names = {name for name, entry in entries.items() if entry["parent"] is None}
    assert {model["name"] for model in client.get("/models").json()["data"]} == names
    for name, entry in entries.items():
        assert client.get(f"/v1/models/{name}").json() == entry
    page = client.get("/metrics").text
    counted = [line for line in page.splitlines() if line.startswith("berth_models{")]
    assert sum(float(line.split()[-1]) for line in counted) == len(names)
    return entries.keys() - {"berth-demo"}


def eventually(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_alias_has_an_entry_with_its_model(tmp_path: Path) -> None:
    with berth_with(tmp_path, CATALOG) as berth, client_of(berth) as client:
        entries = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}
        for alias in ("nick", "nick two"):
            assert (entries[alias]["root"], entries[alias]["parent"]) == ("stays", "stays")
            assert client.get(f"/v1/models/{alias}").json() == entries[alias]
        assert entries["stays"]["parent"] is None
        assert ask(client, "nick two").status_code == 200
        assert client.get("/v1/models/nick").json()["state"] == "running"
        assert client.get("/v1/models/").json() == client.get("/v1/models").json(), "a slash too many"
        refused = ask(client, "BROKEN")
        assert (refused.status_code, "'broken'" in refused.text) == (404, True), "capitals are hinted at"


def test_a_model_removed_from_the_catalog_is_unlisted_once_it_has_ended(tmp_path: Path) -> None:
    with berth_with(tmp_path, CATALOG) as berth, client_of(berth) as client:
        everything = {"stays", "nick", "nick two", "goes", "going", "broken"}
        assert ask(client, "goes").status_code == 200
        assert ask(client, "broken").status_code == 503
        assert listed(client) == everything
        (tmp_path / "models.yaml").write_text(json.dumps({"models": {"stays": CATALOG["stays"]}}))
        client.post("/reload").raise_for_status()
        assert listed(client) == {"stays", "nick", "nick two", "goes"}, "running models stay"
        assert ask(client, "goes").status_code == 200
        client.post("/models/goes/stop").raise_for_status()
        assert listed(client) == {"stays", "nick", "nick two"}
        for name in ("goes", "going", "broken"):
            answer = ask(client, name)
            assert answer.status_code == 404
            assert "broken" not in answer.json()["error"]["message"].partition(";")[2]
    with berth_with(tmp_path, {"stays": CATALOG["stays"]}) as berth, client_of(berth) as client:
        assert client.get("/instances", params={"all": "true"}).json()["data"], "they are kept, and"
        assert listed(client) == {"stays", "nick", "nick two"}
        assert ask(client, "goes").status_code == 404


def test_instances_that_never_ran_or_were_stopped_are_not_listed(tmp_path: Path) -> None:
    with berth_with(tmp_path, {}) as berth, client_of(berth) as client:
        typo = {"model_name": "typo", "engine": "command", "command": command("--fail-with", "no")}
        client.post("/instances", json=typo, params={"wait": 20})
        assert ask(client, "another typo").status_code == 404
        eventually(lambda: client.get("/instances").json()["data"] == [])
        assert listed(client) == set()
        right = {"model_name": "right", "engine": "command", "command": command(), "name": "it"}
        client.post("/instances", json=right, params={"wait": 20}).raise_for_status()
        assert listed(client) == {"right"}
        client.post("/instances/it/stop").raise_for_status()
        assert listed(client) == set()
        assert ask(client, "right").status_code == 200, "a request by name starts it again all the same"
        assert listed(client) == {"right"}


def test_an_engines_adapters_and_other_names_are_its_models(tmp_path: Path) -> None:
    """Adapters are requested by their own names, whatever name the engine serves."""
    python = write_fake_python(tmp_path / "python")
    params = {
        "served_model_name": "base",
        "lora_modules": ["sql=/adapters/sql", '{"name": "poet", "path": "/adapters/poet"}'],
    }
    models = {"vllm": {"engine": "vllm", "path": str(tmp_path), "params": params, "aliases": ["nick"]}}
    with berth_with(tmp_path, models, VLLM_PYTHON=python) as berth, client_of(berth) as client:
        entries = {entry["id"]: entry["parent"] for entry in client.get("/v1/models").json()["data"]}
        assert {name: entries[name] for name in ("vllm", "nick", "sql", "poet")} == {
            "vllm": None, "nick": "vllm", "sql": "vllm", "poet": "vllm",
        }  # fmt: skip
        for name, sent in (("sql", "sql"), ("poet", "poet"), ("vllm", "base"), ("nick", "base")):
            answer = client.post("/v1/echo", json={"model": name})
            assert json.loads(answer.json()["body"])["model"] == sent
        for name, sent in (("vllm:sql", "sql"), ("nick:poet", "poet"), ("vllm:loaded-later", "loaded-later")):
            answer = client.post("/v1/echo", json={"model": name})
            assert json.loads(answer.json()["body"])["model"] == sent
        for name in ("vllm:", ":sql", "other:sql"):
            assert client.post("/v1/echo", json={"model": name}).status_code == 404
        own = {"model_name": str(tmp_path), "engine": "vllm", "params": {"served_model_name": ["one", "two"]}}
        client.post("/instances", json=own, params={"wait": 30}).raise_for_status()
        for name in ("one", "two"):
            assert client.get(f"/v1/models/{name}").json()["state"] == "running"
            assert client.post("/v1/echo", json={"model": name}).status_code == 200


def test_a_key_for_a_model_sees_all_its_names(tmp_path: Path) -> None:
    keys = {name: f"the-key-for-{name.replace(' ', '-')}" for name in ("nick", "stays")}
    (tmp_path / "keys").write_text("".join(f"{key}: {key} models={name}\n" for name, key in keys.items()))
    (tmp_path / "keys").chmod(0o600)
    with berth_with(tmp_path, CATALOG, API_KEYS_FILE=str(tmp_path / "keys")) as berth:
        for key in keys.values():
            headers = {"Authorization": f"Bearer {key}"}
            with httpx.Client(base_url=berth.url, trust_env=False, headers=headers) as client:
                names = [entry["id"] for entry in client.get("/v1/models").json()["data"]]
                assert names == ["stays", "nick", "nick two"]


def test_model_paths_are_shown_only_to_admins(tmp_path: Path) -> None:
    catalog = {
        "named": {"path": str(tmp_path / "secret" / "place")},
        "by-hub-id": {"model": "o/n"},
        **CATALOG,
    }
    keys = {"API_KEYS": "a-key-for-requests", "ADMIN_API_KEYS": "a-key-for-everything"}
    with berth_with(tmp_path, catalog, **keys) as berth, berth.client() as client:
        shown = {}
        for key in keys.values():
            headers = {"authorization": f"Bearer {key}"}
            answer = client.get("/v1/models", headers=headers)
            shown[key] = {entry["id"]: entry["root"] for entry in answer.json()["data"]}
            for name, root in shown[key].items():
                assert client.get(f"/v1/models/{name}", headers=headers).json()["root"] == root
    for_requests, for_admins = shown.values()
    assert for_admins["named"] == str(tmp_path / "secret" / "place")
    own = {"named": "named", "berth-demo": "berth-demo"}
    assert for_requests == for_admins | own


def test_an_unlisted_model_is_used_but_not_listed_and_metadata_is_shown(tmp_path: Path) -> None:
    metadata = {"team": "search", "cost": {"per_token": 0.5}}
    catalog = {
        "hidden": {"command": command(), "unlisted": True},
        "shown": {"command": command(), "metadata": metadata},
    }
    with berth_with(tmp_path, catalog) as berth, client_of(berth) as client:
        for path, key in (("/v1/models", "id"), ("/api/v1/models", "key"), ("/api/v0/models", "id")):
            answer = client.get(path).json()
            names = {one[key] for one in answer.get("data", answer.get("models"))}
            assert ("hidden" in names, "shown" in names) == (False, True), path
        records = {one["name"]: one for one in client.get("/models").json()["data"]}
        assert records["hidden"]["unlisted"] is True, "an admin sees it"
        assert client.get("/v1/models/hidden").json()["id"] == "hidden"
        assert client.get("/v1/models/shown").json()["metadata"] == metadata
        assert "metadata" not in client.get("/v1/models/hidden").json()
        assert ask(client, "hidden").status_code == 200


def test_an_alias_may_set_fields_of_its_requests(tmp_path: Path) -> None:
    entry = {
        "command": command(),
        "aliases": ["think:high", "think:low", "plain"],
        "alias_params": {"think:high": {"effort": "high", "temperature": 1}, "think:low": {"effort": "low"}},
        "filters": {"set_params": {"temperature": 0}},
    }
    with berth_with(tmp_path, {"think": entry}) as berth, client_of(berth) as client:
        for name, expected in (
            ("think:high", {"temperature": 1, "effort": "high"}),
            ("think:low", {"temperature": 0, "effort": "low"}),
            ("plain", {"temperature": 0, "effort": "own"}),
            ("think", {"temperature": 0, "effort": "own"}),
        ):
            answer = client.post("/v1/echo", json={"model": name, "effort": "own"})
            assert json.loads(answer.json()["body"]) == {"model": "think", **expected}, name
        entry["alias_params"] = {"nobody": {}}
        (tmp_path / "models.yaml").write_text(json.dumps({"models": {"think": entry}}))
        refused = client.post("/reload")
        assert (refused.status_code, "'nobody'" in refused.text) == (422, True)
