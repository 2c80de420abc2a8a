"""docker-compose.yml: valid by the Compose specification's schema, and no wider open than it says."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from configs.settings import Settings
from tests.berth_process import ROOT
from tests.deploy.linters import linter

FILES = sorted((ROOT / "deploy").glob("docker-compose*.yml"))
DEFAULTS = Settings.model_fields


def load(name: str) -> dict[str, Any]:
    with (ROOT / "deploy" / name).open() as file:
        found: dict[str, Any] = YAML(typ="safe").load(file)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_specifications_schema_takes_it(path: Path) -> None:
    argv = [linter("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_and_volumes_that_it_names_exist() -> None:
    compose = load("docker-compose.yml")
    build = compose["services"]["berth"]["build"]
    assert (ROOT / "deploy" / build["context"] / build["dockerfile"]).is_file()
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (ROOT / "deploy" / source).exists(), source
            elif not source.startswith("$"):
                assert source in compose["volumes"], source


def test_redis_and_prometheus_come_only_when_asked_for() -> None:
    services = load("docker-compose.yml")["services"]
    assert {name: service.get("profiles") for name, service in services.items()} == {
        "berth": None,
        "redis": ["redis"],
        "prometheus": ["prometheus"],
    }


def test_nothing_is_published_to_the_network_unless_somebody_says_so() -> None:
    services = load("docker-compose.yml")["services"]
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports and all(port.startswith(("127.0.0.1:", "${BERTH_ADDRESS:-127.0.0.1:")) for port in ports)
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_a_stop_leaves_time_to_drain() -> None:
    grace = load("docker-compose.yml")["services"]["berth"]["stop_grace_period"]
    minutes = int(grace.removesuffix("m"))
    assert minutes * 60 > DEFAULTS["drain_timeout"].default + DEFAULTS["stop_grace"].default


def test_prometheus_asks_berth_with_the_key_that_compose_gives_it() -> None:
    compose = load("docker-compose.yml")
    scrape = load("prometheus.yml")["scrape_configs"][0]
    secret = Path(scrape["authorization"]["credentials_file"])
    assert secret == Path("/run/secrets") / compose["services"]["prometheus"]["secrets"][0]
    assert "berth:5000" in [target for one in scrape["static_configs"] for target in one["targets"]]


def test_the_hosts_hub_cache_is_mounted_where_the_image_looks_for_models() -> None:
    volumes = load("docker-compose.yml")["services"]["berth"]["volumes"]
    mounts = dict(volume.removesuffix(":ro").rsplit(":", 1)[::-1] for volume in volumes)
    assert mounts["/hub"] == "${BERTH_HUB_CACHE:-${HOME}/.cache/huggingface/hub}"
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert "MODEL_DIRS=/models:/app/models:/hub" in dockerfile
