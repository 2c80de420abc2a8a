"""A request reaches the model that it names, in any format, under the name that the engine serves."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.api.test_gateway import ask, berth_with, client_of, replicas
from tests.berth_process import BerthProcess
from tests.fake_engine import command

ODD_NAMES = ["with space", "quo'te\"d", "модель", "a/b c/ü", "50%", "what?#1", "a+b&c=d"]
CATALOG: dict[str, Any] = {
    "other": {"command": command()},
    "wanted": {"command": command(), "aliases": ["nick name"]},
    "renamed": {"command": command(), "model": "X", "aliases": ["re"]},
    "own-name": {"command": command("--served-model-name", "own-name"), "model": "X"},
    "surprise": {"command": command("--served-model-name", "llama.gguf")},
    **{name: {"command": command()} for name in ODD_NAMES},
}
JSON = {"content-type": "application/json"}
FORM = "multipart/form-data; boundary=XX"


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    directory = tmp_path_factory.mktemp("right")
    with berth_with(directory, CATALOG, VLLM_MAX_INSTANCES="20", APP_DEBUG="true") as berth:
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    """Exactly one model runs, and it is not the requested one."""
    with client_of(berth) as client:
        for model in client.get("/models").json()["data"]:
            if model["state"] == "running" and model["name"] != "other":
                client.post(f"/models/{quote(model['name'])}/stop")
        assert ask(client, "other").status_code == 200
        yield client


def form(*fields: tuple[str, bytes], filler: int = 0) -> bytes:
    parts = [("file; filename=x", b"\0" * filler), *fields] if filler else fields
    body = b"".join(
        b"--XX\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b\r\n" % (name.encode(), value)
        for name, value in parts
    )
    return body + b"--XX--\r\n"


def asked_for(answer: httpx.Response) -> str:
    """The model that the engine received, read from the path that it echoes."""
    assert answer.status_code == 200, answer.text
    body: str = answer.json()["body"]
    return str(json.loads(body)["model"])


LONG = "x" * 3_000_000


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/v1/files", FORM, form(("model", b"wanted"), filler=9_000_000)),
        ("/v1/files", FORM, form(("model", b"nick name"), ("file; filename=x", b"y" * 9_000_000))),
        ("/v1/embeddings", "application/json", f'{{"input": "{LONG}", "model": "wanted"}}'.encode()),
        ("/v1/embeddings", "text/plain", b'\xef\xbb\xbf{"mod\\u0065l": "nick name", "input": ""}'),
        ("/v1/embeddings", "application/x-www-form-urlencoded", b"input=a%26b&mod%65l=nick+name"),
        ("/v1/embeddings", "application/x-www-form-urlencoded", b' {"model": "wanted"}'),
        ("/v1/embeddings?model=nick%20name", "application/json", b'{"model": "wanted"}'),
        ("/v1/embeddings?model=wanted", "application/json", b"{}"),
        ("/v1/files?model=wanted", FORM, form(("purpose", b"x"), filler=100_000)),
    ],
)
def test_a_request_reaches_the_model_it_names_and_no_other(
    client: httpx.Client, path: str, kind: str, body: bytes, is_chunked: bool
) -> None:
    pieces = (body[start : start + 65_536] for start in range(0, len(body), 65_536))
    answer = client.post(path, content=pieces if is_chunked else body, headers={"content-type": kind})
    assert answer.status_code == 200, answer.text
    assert client.get("/models/wanted").json()["state"] == "running"
    assert answer.json()["bytes"] > len(body) - 20
    assert "nick" not in answer.json()["body"], "an engine doesn't know the alias"


@pytest.mark.parametrize(
    ("path", "kind", "body", "message"),
    [
        ("/v1/embeddings", "application/json", b'{"model": "wanted", "model": "other"}', "more than once"),
        ("/v1/embeddings", "application/json", b'{"body": {"model": "wanted"}}', "top level"),
        ("/v1/embeddings?model=other", "application/json", b'{"model": "wanted"}', "in the query"),
        ("/v1/embeddings?model=other&model=wanted", "application/json", b"{}", "more than once"),
        ("/v1/files", FORM, form(("model", b"wanted"), ("model", b"other")), "more than once"),
        ("/v1/files", FORM, form(("model", b"wanted"), filler=99_999)[:-30], "closing boundary"),
        ("/v1/files", "multipart/form-data", form(("model", b"wanted")), "boundary"),
        ("/v1/files", FORM, b'{"model": "wanted", "x": [}', "closing boundary"),
        ("/v1/files", FORM, form(("model; filename=y", b"wanted")), "not a file"),
        ("/v1/files", "application/json", form(("model", b"wanted")), "not valid JSON"),
        (
            "/generate",
            "application/json",
            b'{"prompt": "a", "model": "other", "model": "wanted"}',
            "as 'other'",
        ),
    ],
)
def test_ambiguous_requests_are_refused(
    client: httpx.Client, path: str, kind: str, body: bytes, message: str
) -> None:
    answer = client.post(path, content=body, headers={"content-type": kind})
    assert answer.status_code in (400, 422), answer.text
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("filler", [70_000, 5_000_000])
def test_a_form_that_names_another_model_later_is_aborted(
    berth: BerthProcess, client: httpx.Client, is_chunked: bool, filler: int
) -> None:
    """At any distance: the first model is found early, but engines may use the last one."""
    body = form(("model", b"wanted"), ("file; filename=x", b"y" * filler), ("model", b"other"), ("a", b"b"))
    pieces = (body[start : start + 16_384] for start in range(0, len(body), 16_384))
    answer = client.post("/v1/files", content=pieces if is_chunked else body, headers={"content-type": FORM})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "invalid_form"
    assert "more than once" in answer.json()["error"]["message"]
    same = form(("model", b"wanted"), ("file; filename=x", b"y" * filler), ("model", b"wanted"))
    assert client.post("/v1/files", content=same, headers={"content-type": FORM}).is_success
    assert "Traceback" not in berth.output()


def test_a_body_counts_for_any_method(client: httpx.Client) -> None:
    for method in ("PUT", "DELETE", "GET"):  # the last starts nothing
        answer = client.request(method, "/v1/things", content=b'{"model": "wanted"}', headers=JSON)
        assert asked_for(answer) == "wanted"
    assert client.get("/models/wanted").json()["state"] == "running"


def test_a_request_without_a_model_goes_to_the_only_running_one(client: httpx.Client) -> None:
    for body in (b"", b"{}", b'{"model": null}'):
        assert client.post("/v1/embeddings", content=body, headers=JSON).status_code == 200
    assert client.post("/v1/files", content=form(("a", b"b")), headers={"content-type": FORM}).is_success
    assert client.get("/models/wanted").json()["state"] == "stopped"


@pytest.mark.parametrize(
    ("name", "known_as"),
    [("renamed", "X"), ("re", "X"), ("own-name", "own-name"), ("surprise", "llama.gguf")],
)
def test_requests_use_the_engines_own_name_from_the_first_on(
    client: httpx.Client, name: str, known_as: str
) -> None:
    body = {"model": name, "input": "a"}
    for _ in range(2):
        assert asked_for(client.post("/v1/embeddings", json=body)) == known_as
    listed = client.get(f"/v1/models/{name}").json()
    assert client.post(f"/models/{listed['parent'] or name}/restart", params={"wait": 30}).is_success
    assert asked_for(client.post("/v1/embeddings", json=body)) == known_as
    upload = client.post(
        "/v1/files", content=form(("model", name.encode()), filler=99), headers={"content-type": FORM}
    )
    assert f"\r\n\r\n{known_as}\r\n" in upload.json()["body"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_every_listed_name_can_be_used(client: httpx.Client, name: str) -> None:
    assert name in [entry["id"] for entry in client.get("/v1/models").json()["data"]]
    for folder in ("/v1/models", "/models"):
        found = client.get(f"{folder}/{quote(name, safe='')}").json()
        assert name in (found.get("id"), found.get("name"))
        assert client.get(f"{folder}/{quote(name)}").is_success
    assert asked_for(client.post("/v1/embeddings", json={"model": name, "input": "a"})) == name
    upload = client.post(
        "/v1/files", content=form(("model", name.encode())), headers={"content-type": FORM}
    ).json()
    assert f"\r\n\r\n{name}\r\n" in upload["body"]
    encoded = client.post("/v1/embeddings", data={"model": name}).json()["body"]
    assert httpx.QueryParams(encoded)["model"] == name
    assert client.post(f"/models/{quote(name, safe='')}/stop").json()["state"] == "stopped"


def test_fields_for_berth_do_not_reach_engines(client: httpx.Client) -> None:
    body = {"model": "other", "input": "a", "keep_alive": "1h", "options": {"x": 1}}
    got = json.loads(client.post("/v1/embeddings", json=body).json()["body"])
    assert got == {"model": "other", "input": "a", "options": {"x": 1}}
    (record,) = replicas(client, "other")
    assert record["timeout"] == 3600
    raw = json.dumps(body).encode()
    by_id = client.post(f"/proxy/{record['instance_id']}/v1/embeddings", content=raw, headers=JSON)
    assert by_id.json()["body"].encode() == raw


def test_a_retried_request_has_the_name_of_its_new_engine(tmp_path: Path) -> None:
    """The engine dies with the request; the next one gets its own name."""
    models = {"renamed": {"command": command(), "model": "X"}}
    with berth_with(tmp_path, models) as berth, client_of(berth) as client:
        ask(client, "renamed")
        (record,) = replicas(client, "renamed")
        os.kill(record["pid"], signal.SIGKILL)
        assert asked_for(client.post("/v1/embeddings", json={"model": "renamed"})) == "X"
