"""The engine kinds `sglang` and `tei` behind a real Berth, with fakes: started with their own keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.berth_process import ROOT, running_berth
from tests.fake_engine import FAKE_ENGINE, write_fake_python

DEMO = str(ROOT / "models" / "berth-demo")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("kinds")
    models = {name: {"engine": name, "path": DEMO} for name in ("sglang", "tei")}
    (folder / "models.yaml").write_text(json.dumps({"models": models}))
    router = folder / "text-embeddings-router"
    router.write_text(write_fake_python_text(folder))
    router.chmod(0o755)
    settings = {
        "MODELS_FILE": str(folder / "models.yaml"),
        "SGLANG_PYTHON": write_fake_python(folder / "python"),
        "TEI_SERVER": str(router),
    }
    with running_berth(folder, **settings) as berth, berth.client() as client:
        yield client


def write_fake_python_text(folder: Path) -> str:
    """A fake router, whose flags need no module's name before them."""
    started = Path(write_fake_python(folder / "any")).read_text().replace("shift 2\n", "")
    return started.replace(f'"{FAKE_ENGINE}"', f'"{FAKE_ENGINE}" --check-key --key-variable API_KEY')


@pytest.mark.parametrize(
    ("name", "path", "key"),
    [("sglang", "/v1/completions", "SGLANG_API_KEY"), ("tei", "/v1/embeddings", "API_KEY")],
)
def test_a_request_by_name_starts_it_with_its_own_key(
    client: httpx.Client, name: str, path: str, key: str
) -> None:
    answer = client.post(path, json={"model": name, "prompt": "a", "input": "a", "max_tokens": 1})
    assert answer.status_code in (200, 404), answer.text  # the fake embeds nothing
    (instance_id,) = client.get(f"/models/{name}").json()["replicas"]
    record = client.get(f"/instances/{instance_id}").json()
    assert (record["engine"], record["status"]) == (name, "running")
    environment = client.get(f"/proxy/{instance_id}/env").json()
    assert environment[key] and environment[key] not in " ".join(record["command"])
