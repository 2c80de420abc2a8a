"""A container may run under a user id that has no user and no HOME; Berth serves all the same."""

from __future__ import annotations

from pathlib import Path

from tests.berth_process import ROOT, running_berth

# Read by every Python process as it starts, Berth's engines and downloads included.
NOBODY = """
import os, pwd

os.environ.pop("HOME", None)


def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")


pwd.getpwuid = unknown
"""


def test_berth_and_its_engines_need_no_home_directory(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOBODY)
    (tmp_path / "models.yaml").write_text("models: {tilde: {path: ~/none}, here: {model: berth-demo}}")
    settings = {
        "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}",
        "MODELS_FILE": str(tmp_path / "models.yaml"),
        "BERTH_NATIVE_KERNELS": "0",  # they would be compiled each time: there is no cache folder
        "STATE_DIR": "state",  # as seen from Berth's folder, which is not that of its engines
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    with running_berth(tmp_path, **settings) as berth, berth.client() as client:
        body = {"model": "here", "prompt": "a", "max_tokens": 1}
        answer = client.post("/v1/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        assert "no such directory" in client.get("/models/tilde").json()["problem"]
        assert "hub_unreachable" in client.post("/models/pull", json={"model": "a/b"}).text
        assert list((tmp_path / "state" / "run").glob("*.json")), "the next Berth couldn't find the engine"
