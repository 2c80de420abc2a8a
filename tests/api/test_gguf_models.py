"""GGUF models of a real Berth: listed, described, started, changed and deleted by names with a colon."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.test_right_model import asked_for
from tests.berth_process import ROOT, BerthProcess, running_berth
from tests.fake_engine import write_fake_python
from tests.gguf_files import TEMPLATE, put_gguf, put_split, tiny

pytestmark = pytest.mark.timeout(120)

CACHED = "org/Foo-GGUF:Q8_0"


def put_cached(home: Path, *names: str) -> Path:
    """A repository in the hub's cache."""
    repository = home / "hub" / "models--org--Foo-GGUF"
    snapshot = repository / "snapshots" / "c0ffee"
    for name in names:
        put_gguf(repository / "blobs", f"blob-{name}", content=tiny() + name.encode())
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(f"../../blobs/blob-{name}")
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text("c0ffee")
    return snapshot


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("gguf")
    put_gguf(home / "models" / "see", "see-Q8_0.gguf", "see-Q4_K_M.gguf", "mmproj-see-F16.gguf")
    put_gguf(home / "models" / "embeds", "embeds-F16.gguf", content=tiny("bert", pooling_type=1))
    put_split(home / "models" / "cut", "cut-Q8_0", 3, missing=(2,))
    put_cached(home, "Foo-Q4_K_M.gguf", "Foo-Q8_0.gguf")
    adapted = {"lora_modules": ["sql=/adapters/sql", "Q8_0=/adapters/other"], "enable_lora": True}
    catalog = {
        "tagged": {"model": "see:q8_0", "aliases": ["see:latest"]},
        "base": {"path": str(home / "models" / "embeds"), "params": adapted},
        "base:Q8_0": {"model": "see:Q8_0"},
    }
    (home / "models.yaml").write_text(json.dumps({"models": catalog}))
    return home


def settings(home: Path) -> dict[str, str]:
    return {
        "MODEL_DIRS": str(home / "models"),
        "MODELS_FILE": str(home / "models.yaml"),
        "HF_HOME": str(home),
        "DEFAULT_ENGINE": "vllm",
        "VLLM_PYTHON": write_fake_python(home / "python"),
    }


@pytest.fixture(scope="module")
def berth(home: Path) -> Iterator[BerthProcess]:
    with running_berth(home, **settings(home)) as berth:
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    with berth.client() as client:
        yield client


def served(client: httpx.Client, model: str) -> dict[str, Any]:
    """Send a request to a model; returns the record of the instance that answered."""
    answer = client.post("/v1/completions", json={"model": model, "prompt": "a"})
    assert answer.status_code == 200, answer.text
    (record,) = [one for one in client.get("/instances").json()["data"] if one["status"] == "running"]
    client.post(f"/instances/{record['instance_id']}/stop").raise_for_status()
    found: dict[str, Any] = record
    return found


def loaded(record: dict[str, Any]) -> str:
    return str(record["command"][record["command"].index("--model") + 1])


def test_each_quantisation_is_listed_and_the_default_by_its_plain_name_too(client: httpx.Client) -> None:
    listed = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}
    names = {"see:Q4_K_M", "see:Q8_0", "embeds:F16", "cut:Q8_0", "org/Foo-GGUF:Q4_K_M", CACHED}
    assert names | {"see", "embeds", "org/Foo-GGUF"} <= listed.keys()
    assert (listed["see"]["parent"], listed["see:Q8_0"]["parent"]) == ("see:Q4_K_M", None)
    assert {listed[name]["max_model_len"] for name in names - {"cut:Q8_0"}} == {4096}
    assert "it lacks cut-Q8_0-00002-of-00003.gguf" in listed["cut:Q8_0"]["problem"]
    assert listed["see:Q8_0"]["problem"] is None


@pytest.mark.parametrize("name", ["see:Q8_0", "see%3AQ8_0"])
def test_a_model_is_described(client: httpx.Client, name: str, home: Path) -> None:
    assert client.get(f"/v1/models/{name}").json()["id"] == "see:Q8_0"
    record = client.get(f"/models/{name}").json()
    assert (record["name"], record["source"], record["size_bytes"]) == (
        "see:Q8_0", "discovered", 2 * len(tiny())
    )  # fmt: skip
    about = record["description"]
    expected = {
        "format": "gguf", "architecture": "llama", "name": "Tiny", "size_label": "1M", "quantization": "Q8_0",
        "file_type": "Q4_K_M", "context_length": 4096, "block_count": 4, "head_count": 8, "head_count_kv": 2,
        "vocabulary_size": 4, "tokenizer": "gpt2", "chat_template": True, "num_parameters": 256,
        "tensor_bytes": 1024, "files": ["see-Q8_0.gguf"], "mmproj": "mmproj-see-F16.gguf",
    }  # fmt: skip
    assert {key: about[key] for key in expected} == expected
    assert TEMPLATE not in repr(about) and str(home) not in repr(about)
    assert client.get("/models/see").json()["name"] == "see:Q4_K_M"
    assert client.get("/models/tagged").json()["description"] == about
    listed = {one["name"]: one["description"] for one in client.get("/models").json()["data"]}
    assert (listed["see:Q8_0"]["context_length"], listed["see:Q8_0"]["tensor_bytes"]) == (4096, None)


def test_what_is_not_gguf_has_no_description(client: httpx.Client) -> None:
    client.post("/instances", json={"model_name": "org/any", "name": "any"}).raise_for_status()
    assert client.get("/models/org/any").json()["description"] is None
    client.delete("/instances/any")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("see:Q8_0", "models/see/see-Q8_0.gguf"),
        ("see", "models/see/see-Q4_K_M.gguf"),
        ("tagged", "models/see/see-Q8_0.gguf"),
        ("see:latest", "models/see/see-Q8_0.gguf"),
        ("org/Foo-GGUF", "hub/models--org--Foo-GGUF/snapshots/c0ffee/Foo-Q4_K_M.gguf"),
        (CACHED, "hub/models--org--Foo-GGUF/snapshots/c0ffee/Foo-Q8_0.gguf"),
    ],
)
def test_a_request_starts_the_file_that_its_model_names(
    client: httpx.Client, home: Path, name: str, file: str
) -> None:
    assert loaded(served(client, name)) == str(home / file)


@pytest.mark.parametrize("name", ["see:q4_k_m", CACHED, "org/Foo-GGUF"])
def test_an_instance_may_be_created_by_such_a_name(client: httpx.Client, home: Path, name: str) -> None:
    record = client.post("/instances?wait=60", json={"model_name": name}).json()
    assert record["status"] == "running", record
    assert loaded(record).endswith(".gguf")
    assert client.get(f"/models/{name}").json()["replicas"] == [record["instance_id"]]
    client.delete(f"/instances/{record['instance_id']}").raise_for_status()


def test_a_models_own_name_wins_over_an_adapters(client: httpx.Client, home: Path) -> None:
    """`base:Q8_0` is an entry of its own, and `base` has an adapter of that name."""
    assert loaded(served(client, "base:Q8_0")) == str(home / "models/see/see-Q8_0.gguf")
    answer = client.post("/v1/embeddings", json={"model": "base:sql", "input": "a"})
    assert asked_for(answer) == "sql"
    assert client.get("/models/base:sql").json()["name"] == "base"
    client.post("/models/base/stop")


def test_an_unknown_quantisation_is_answered_with_the_similar_ones(client: httpx.Client) -> None:
    error = client.post("/v1/completions", json={"model": "see:Q6_K", "prompt": "a"}).json()["error"]
    assert error["code"] == "model_not_found"
    assert "did you mean" in error["message"] and "'see:Q8_0'" in error["message"]


def test_a_changed_model_keeps_its_names(client: httpx.Client, home: Path) -> None:
    before = (home / "models.yaml").read_text()
    client.patch("/models/org/Foo-GGUF", json={"timeout": 77}).raise_for_status()
    record = client.get("/models/org/Foo-GGUF").json()
    assert (record["name"], record["source"], record["timeout"]) == ("org/Foo-GGUF:Q4_K_M", "catalog", 77)
    assert record["description"]["quantization"] == "Q4_K_M"
    (home / "models.yaml").write_text(before)
    client.post("/reload").raise_for_status()


def test_a_quantisation_is_deleted_unless_it_is_in_use(client: httpx.Client, home: Path) -> None:
    made = client.post("/instances?wait=60", json={"model_name": CACHED, "name": "user"}).json()
    refused = client.delete(f"/models/{CACHED}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_in_use")
    client.delete(f"/instances/{made['instance_id']}").raise_for_status()
    assert client.delete(f"/models/{CACHED}").status_code == 204
    assert client.get(f"/models/{CACHED}").status_code == 404
    snapshot = home / "hub" / "models--org--Foo-GGUF" / "snapshots" / "c0ffee"
    assert [path.name for path in snapshot.iterdir()] == ["Foo-Q4_K_M.gguf"]
    ours = client.delete("/models/see:Q8_0")
    assert (ours.status_code, ours.json()["error"]["code"]) == (409, "model_not_downloaded")
    assert (home / "models" / "see" / "see-Q8_0.gguf").exists()


def test_new_parts_make_a_model_whole(client: httpx.Client, home: Path) -> None:
    assert client.get("/models/cut").json()["problem"]
    put_split(home / "models" / "cut", "cut-Q8_0", 3)
    client.post("/reload").raise_for_status()
    assert client.get("/models/cut").json()["problem"] is None
    shutil.rmtree(home / "models" / "cut")


def test_a_check_names_what_is_incomplete_and_nothing_else(home: Path, tmp_path: Path) -> None:
    put_gguf(tmp_path / "models" / "a", "a-Q8_0.gguf")
    put_split(tmp_path / "models" / "b", "b-Q8_0", 2, missing=(2,))
    (tmp_path / "models.yaml").write_text(json.dumps({"models": {"x": {"path": "models/a"}}}))
    argv = [sys.executable, str(ROOT / "app.py"), "--check"]
    env = {**settings(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DEFAULT_MODEL": "a"}
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "b-Q8_0-00001-of-00002.gguf: it lacks b-Q8_0-00002-of-00002.gguf" in done.stdout
    assert done.stdout.count("note: ") == 1, done.stdout
