"""models.yaml over HTTP, through a real Berth: invalid changes are refused and change nothing.

The GPUs are fake (tests/fake_nvml).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.berth_process import ROOT, running_berth
from tests.fake_nvml import DIRECTORY, describe_gpus, uuid, write_gpus

CATALOG = """\
models:
  own:
    command: [some-server, --port, "{port}"]
  demo:
    model: berth-demo  # the small one
"""


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "models.yaml"
    path.write_text(CATALOG)
    return path


@pytest.fixture(scope="module")
def client(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a Berth with two GPUs."""
    folder = tmp_path_factory.mktemp("berth")
    write_gpus(folder / "gpus.json", describe_gpus(2))
    settings = {
        "PYTHONPATH": os.pathsep.join((str(DIRECTORY), str(ROOT))),
        "FAKE_NVML": str(folder / "gpus.json"),
        "MODELS_FILE": str(catalog),
        "STATE_DIR": str(folder / "state"),
    }
    with running_berth(folder, **settings) as berth, berth.client() as client:
        yield client


@pytest.fixture(autouse=True)
def unchanged(catalog: Path, client: httpx.Client) -> Iterator[None]:
    yield
    catalog.write_text(CATALOG)
    client.post("/reload").raise_for_status()


def refused(response: httpx.Response, status: int = 422) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [("params", {"max_num_seqs": 4}), ("max_model_len", 512), ("gpu_memory_utilization", 0.5)],
)
def test_a_custom_command_gets_no_flags(
    client: httpx.Client, catalog: Path, field: str, value: object
) -> None:
    error = refused(client.patch("/models/own", json={"timeout": 5, field: value}))
    assert (error["param"], error["code"]) == (field, "invalid_spec")
    assert "'own'" in error["message"]
    assert "`command` in models.yaml" in error["message"]
    assert catalog.read_text() == CATALOG


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"no_such_flag": 3}, "params.no_such_flag=3: the engine has no such flag"),
        ({"max_num_seq": 3}, "did you mean max_num_seqs?"),
        ({"max_model_len": "abc"}, "params.max_model_len=abc: must be a whole number"),
        ({"enable_prefix_caching": "yes"}, "must be true or false, without quotation marks"),
        ({"enable_prefix_caching": 1}, "params.enable_prefix_caching=1: must be true or false"),
        ({"max_num_seqs": "two"}, "params.max_num_seqs=two: must be a whole number above 0"),
        ({"model": "x"}, "Berth sets it"),
    ],
)
def test_flags_the_engine_would_refuse_are_refused_before_a_stop(
    client: httpx.Client, catalog: Path, params: dict[str, Any], message: str
) -> None:
    started = client.post("/models/demo/start?wait=60").json()
    assert started["state"] == "running", started
    for path in ("/models/demo", "/models/demo?restart=true"):
        error = refused(client.patch(path, json={"timeout": 700, "params": params}))
        assert error["param"] == f"params.{next(iter(params))}"
        assert message in error["message"]
    assert catalog.read_text() == CATALOG
    assert client.get("/models/demo").json()["replicas"] == started["replicas"]
    assert client.get("/models/demo").json()["state"] == "running"
    error = refused(client.post("/instances", json={"model_name": "berth-demo", "params": params}))
    assert message in error["message"]


def test_a_restart_with_invalid_flags_in_the_file_stops_nothing(client: httpx.Client, catalog: Path) -> None:
    started = client.post("/models/demo/start?wait=60").json()
    catalog.write_text(f"{CATALOG}    params: {{max_model_len: abc}}\n")
    [warning] = client.post("/reload").json()["warnings"][-1:]
    assert warning.startswith("model demo can't be started: params.max_model_len=abc")
    for restart in (
        client.post("/models/demo/restart"),
        client.patch("/models/demo?restart=true", json={"timeout": 5}),
    ):
        assert "max_model_len=abc" in refused(restart)["message"]
    record = client.get("/models/demo").json()
    assert (record["replicas"], record["state"]) == (started["replicas"], "running")
    assert "max_model_len=abc" in record["problem"]


def test_another_models_error_does_not_prevent_a_change(client: httpx.Client, catalog: Path) -> None:
    catalog.write_text("models:\n  demo:\n    path: not-there-yet\n")
    client.post("/reload").raise_for_status()
    patched = client.patch("/models/demo", json={"timeout": 5})
    assert patched.status_code == 200, patched.text
    assert "no such directory" in patched.json()["problem"]


@pytest.mark.parametrize("devices", [["2"], [2], ["0", "GPU-none"]])
def test_an_instance_on_a_missing_gpu_is_refused(client: httpx.Client, devices: list[object]) -> None:
    error = refused(client.post("/instances", json={"model_name": "berth-demo", "devices": devices}))
    assert (error["param"], error["code"]) == ("devices", "no_such_device")
    assert "there are 2 GPUs" in error["message"]


def test_an_instances_gpu_index_is_within_cuda_visible_devices(tmp_path: Path) -> None:
    """Relative to Berth's CUDA_VISIBLE_DEVICES, not to the engine's."""
    write_gpus(tmp_path / "gpus.json", describe_gpus(3))
    settings = {
        "PYTHONPATH": os.pathsep.join((str(DIRECTORY), str(ROOT))),
        "FAKE_NVML": str(tmp_path / "gpus.json"),
        "CUDA_VISIBLE_DEVICES": "2,1",
        "MODELS_FILE": str(tmp_path / "models.yaml"),
    }
    body = {"model_name": "x", "engine": "command", "command": ["sleep", "60"], "devices": [0]}
    with running_berth(tmp_path, **settings) as berth, berth.client() as client:
        made = client.post("/instances", json=body)
        assert made.status_code == 201, made.text
        assert made.json()["devices"] == [uuid(2)]
        client.delete(f"/instances/{made.json()['instance_id']}?force=true").raise_for_status()
        error = refused(client.post("/instances", json={**body, "devices": [2]}))
        assert "there are 2 GPUs" in error["message"]


def test_fields_other_than_flags_can_be_changed_for_a_command(client: httpx.Client) -> None:
    patched = client.patch("/models/own", json={"timeout": 5, "params": None, "devices": ["1"]})
    assert patched.status_code == 200, patched.text
    assert (patched.json()["timeout"], patched.json()["devices"]) == (5, ["1"])


@pytest.mark.parametrize("device", ["2", "GPU-none"])
def test_the_error_for_a_missing_gpu_lists_the_available_ones(
    client: httpx.Client, catalog: Path, device: str
) -> None:
    error = refused(client.patch("/models/demo", json={"devices": ["0", device]}))
    assert (error["param"], error["code"]) == ("devices", "no_such_device")
    assert f"no device {device!r}; there are 2 GPUs: 0 = {uuid(0)}" in error["message"]
    assert catalog.read_text() == CATALOG


def test_gpus_may_be_given_by_index_or_uuid_or_none_or_left_to_berth(
    client: httpx.Client, catalog: Path
) -> None:
    for devices in (["1", uuid(0)], [1], [], None):
        patched = client.patch("/models/demo", json={"devices": devices})
        assert patched.status_code == 200, patched.text
        assert patched.json()["devices"] == (["1"] if devices == [1] else devices)
    assert catalog.read_text() == CATALOG


def test_the_same_gpu_twice_is_refused(client: httpx.Client) -> None:
    error = refused(client.patch("/models/demo", json={"devices": ["0", uuid(0)]}))
    assert "twice" in error["message"]


def test_without_a_file_berth_starts_and_the_first_change_creates_it(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    with running_berth(tmp_path, MODELS_FILE=str(file)) as berth, berth.client() as client:
        assert "there is no such file yet" in berth.output()
        client.patch("/models/berth-demo", json={"timeout": 77}).raise_for_status()
        assert "timeout: 77" in file.read_text()
        assert client.get("/models/berth-demo").json()["source"] == "catalog"


def test_without_gpus_none_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(CATALOG)
    settings = {"MODELS_FILE": str(tmp_path / "models.yaml"), "CUDA_VISIBLE_DEVICES": ""}
    with running_berth(tmp_path, **settings) as berth, berth.client() as client:
        error = refused(client.patch("/models/demo", json={"devices": ["0"]}))
        assert "no device '0'; there is no GPU that Berth can see" in error["message"]
        assert client.get("/models/demo").json()["devices"] is None
        error = refused(client.post("/instances", json={"model_name": "berth-demo", "devices": ["0"]}))
        assert "no device '0'; there is no GPU that Berth can see" in error["message"]
        assert client.get("/instances?all=true").json()["data"] == []


def test_a_model_with_a_missing_gpu_is_listed_and_never_runs_on_another(
    tmp_path: Path,
) -> None:
    (tmp_path / "models.yaml").write_text("models: {demo: {model: berth-demo, devices: [0]}}\n")
    settings = {"MODELS_FILE": str(tmp_path / "models.yaml"), "CUDA_VISIBLE_DEVICES": ""}
    with running_berth(tmp_path, **settings) as berth, berth.client() as client:
        assert "model demo can't be started: there is no device '0'" in berth.output()
        assert "no GPU" in client.get("/models/demo").json()["problem"]
        asked = {"model": "demo", "prompt": "x", "max_tokens": 1}
        error = refused(client.post("/v1/completions", json=asked))
        assert "no device '0'; there is no GPU" in error["message"]
        assert "no device '0'" in refused(client.post("/models/demo/restart"))["message"]
        assert client.get("/instances?all=true").json()["data"] == []


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("    max_model_len: many", "models.demo.max_model_len"),
        ("    max_modellen: 512", "models.demo.max_modellen"),
        ("    protocol: klingon", "models.demo.protocol"),
    ],
)
def test_a_broken_catalog_is_reported_with_line_and_key_and_not_used(
    client: httpx.Client, catalog: Path, line: str, place: str
) -> None:
    catalog.write_text(f"{CATALOG}{line}\n  fresh: {{}}\n")
    for _ in range(2):  # it is reported each time
        error = refused(client.post("/reload"))
        assert error["code"] == "invalid_catalog"
        assert f"{catalog}:6: {place}" in error["message"]
    assert client.get("/models/demo").json()["source"] == "catalog"
    refused(client.get("/models/fresh"), 404)


def test_a_catalog_that_is_not_yaml_is_reported_with_its_line(client: httpx.Client, catalog: Path) -> None:
    catalog.write_text(CATALOG + "  demo: [\n")
    error = refused(client.post("/reload"))
    assert f"{catalog}:" in error["message"]
    assert client.get("/models/own").json()["engine"] == "command"


def test_a_repaired_catalog_is_used_at_once(client: httpx.Client, catalog: Path) -> None:
    catalog.write_text("models: 7\n")
    refused(client.post("/reload"))
    catalog.write_text(CATALOG + "    timeout: 44\n")
    assert client.post("/reload").json()["changed"] == ["demo"]
    assert client.get("/models/demo").json()["timeout"] == 44


def test_an_entry_does_not_hide_its_folder(client: httpx.Client) -> None:
    found = {model["name"]: model["source"] for model in client.get("/models").json()["data"]}
    assert (found["demo"], found["berth-demo"]) == ("catalog", "discovered")


def test_the_size_of_a_model_is_reported_for_every_source(
    client: httpx.Client, catalog: Path, tmp_path: Path
) -> None:
    demo = ROOT / "models" / "berth-demo"
    (tmp_path / "link").symlink_to(demo)
    (tmp_path / "x.gguf").write_bytes(b"GGUF" * 10)
    (tmp_path / "empty").mkdir()
    catalog.write_text(
        CATALOG
        + f"""\
  by-path: {{path: {demo}}}
  by-link: {{path: {tmp_path}/link}}
  by-vllm: {{engine: vllm, model: berth-demo}}
  of-command: {{command: [x, "{{port}}"], path: {tmp_path}/x.gguf}}
  empty: {{path: {tmp_path}/empty}}
"""
    )
    client.post("/reload").raise_for_status()
    size = client.get("/models/berth-demo").json()["size_bytes"]
    assert size > 6_000_000
    assert client.patch("/models/berth-demo", json={"timeout": 5}).json()["source"] == "catalog"
    listed = {one["name"]: one for one in client.get("/models").json()["data"]}
    for name in ("berth-demo", "demo", "by-path", "by-link", "by-vllm"):
        assert (listed[name]["size_bytes"], listed[name]["modified"] is None) == (size, False), name
    assert listed["of-command"]["size_bytes"] == 40
    assert [listed[name]["size_bytes"] for name in ("own", "empty")] == [None, None]
