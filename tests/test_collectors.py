"""Garbage collectors never scan the objects that servers created at their start again.

A look through it all holds up every stream for tenths of a second. Each process is asked by its own socket.
"""

from __future__ import annotations

import json
import socket
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.berth_process import ROOT, BerthProcess, running_berth
from tests.faults.environment import eventually

# Read by every Python process as it starts.
PROBE = """
import gc, json, os, socket, threading

listener = socket.socket(socket.AF_UNIX)
listener.bind(os.path.join(os.environ["PROBES"], str(os.getpid())))
listener.listen()


def answer():
    while True:
        with listener.accept()[0] as connection:
            counts = {"frozen": gc.get_freeze_count(), "rest": len(gc.get_objects())}
            connection.sendall(json.dumps({**counts, "after": gc.get_threshold()}).encode())


threading.Thread(target=answer, daemon=True).start()
"""
PYTHON_S_OWN = 700  # new objects until a young collection
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}


def collector(folder: Path, process: psutil.Process) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(folder / str(process.pid)))
        counts: dict[str, Any] = json.loads(probe.makefile().read())
    return counts


def engine_of(berth: BerthProcess) -> psutil.Process:
    body = {
        "model": "here",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 1,
        "response_format": SCHEMA,
    }
    with berth.client(120) as client:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return psutil.Process(client.get("/instances").json()["data"][0]["pid"])


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="it asks by Unix sockets")
def test_collectors_skip_the_servers_permanent_objects(tmp_path: Path) -> None:
    site, probes = tmp_path / "site", tmp_path / "probes"
    site.mkdir()
    probes.mkdir()
    (site / "sitecustomize.py").write_text(PROBE)
    (tmp_path / "models.yaml").write_text("models: {here: {model: berth-demo}}")
    settings = {
        "PYTHONPATH": f"{site}:{ROOT}",
        "PROBES": str(probes),
        "MODELS_FILE": str(tmp_path / "models.yaml"),
    }
    with running_berth(tmp_path, **settings) as berth:
        engine = engine_of(berth)
        [grammars] = [one for one in engine.children() if "engine.structured.worker" in one.cmdline()]

        def has_frozen(process: psutil.Process) -> bool:
            counts = collector(probes, process)
            return bool(counts["frozen"] > 2 * counts["rest"])

        for server in (psutil.Process(berth.pid), engine):
            eventually("what is there is frozen", partial(has_frozen, server))
            young, middle, old = collector(probes, server)["after"]
            assert young > 10 * PYTHON_S_OWN and middle > 10 and old > 10
        eventually("what grammars' processes share is frozen", lambda: has_frozen(grammars))
