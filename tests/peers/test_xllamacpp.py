"""The script that runs llama.cpp's server out of the package xllamacpp, with the real package."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from instance_manager.backends.llama_cpp import in_process_server
from tests.berth_process import ROOT, free_port
from tests.peers.gguf import write_gguf

PYTHON = os.environ.get("LLAMA_SERVER", "")

pytestmark = pytest.mark.skipif(
    not Path(PYTHON).name.startswith("python"), reason="LLAMA_SERVER names no Python with xllamacpp"
)

SET_ALL = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("in_process_server", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["in_process_server"] = module
spec.loader.exec_module(module)
import xllamacpp
samples = {"integer": ["3"], "number": ["0.5"], "switch": [True, False]}
texts = {"tensor_split": "3,1", "fit_params_target": "64", "default_template_kwargs": '{"a": 1}'}
for option in module.read_options():
    text = texts.get(option.field, sys.argv[1] if option.field.endswith("_file") else "/x:0.5")
    for value in samples.get(option.kind, list(option.words) or [text]):
        module._Parameters(xllamacpp).set(option, value)
"""


def test_the_package_has_every_field_of_the_table() -> None:
    subprocess.run([PYTHON, "-c", SET_ALL, in_process_server.__file__], check=True)


def test_it_serves_with_a_key_and_ends_by_a_signal(tmp_path: Path) -> None:
    weights = tmp_path / "m.gguf"
    write_gguf(ROOT / "models" / "berth-demo", weights)
    port = free_port()
    script = [PYTHON, in_process_server.__file__, "--model", str(weights), "--host", "127.0.0.1"]
    command = [*script, "--port", str(port), "--alias", "demo", "--threads", "1"]
    with subprocess.Popen(command, env={**os.environ, "LLAMA_API_KEY": "k"}, stderr=sys.stdout) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                deadline = time.monotonic() + 60
                while not _is_ready(client):
                    assert server.poll() is None and time.monotonic() < deadline
                    time.sleep(0.05)
                assert client.post("/completion", json={"prompt": "a"}).status_code == 401
                headers = {"Authorization": "Bearer k"}
                (model,) = client.get("/v1/models", headers=headers).json()["data"]
                assert model["id"] == "demo"
                taken = subprocess.run(command, capture_output=True, text=True, timeout=60)
                assert taken.returncode == 1 and "couldn't bind HTTP server socket" in taken.stderr
            server.terminate()
            assert server.wait(10) == -signal.SIGTERM
        finally:
            server.kill()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False
