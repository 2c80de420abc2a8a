"""An error in Berth itself ends Berth instead of leaving a server that refuses everything."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
import pytest

from tests.berth_process import ROOT, BerthProcess
from tests.fake_engine import command

# Berth, with an unexpected error.
BROKEN = f"""
import sys

sys.path.insert(0, {str(ROOT)!r})

from app import main
from instance_manager.events import EventLog

publish = EventLog.publish


def broken(self, kind, *rest, **more):
    if kind == "instance.deleted":
        raise RuntimeError("an error in Berth itself")
    return publish(self, kind, *rest, **more)


EventLog.publish = broken
sys.exit(main([]))
"""


@pytest.mark.timeout(60)
def test_berth_exits_when_its_manager_has_failed(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(BROKEN)
    berth = BerthProcess(tmp_path, root=tmp_path)
    try:
        berth.wait_until_serving()
        with berth.client() as client, contextlib.suppress(httpx.TransportError):  # it may be gone sooner
            spec = {"name": "a", "engine": "command", "command": command()}
            assert client.post("/instances?wait=30", json=spec).status_code == 201
            client.delete("/instances/a")
        assert berth.wait() == 1
        assert "an error in Berth itself" in berth.output()
        assert berth.survivors() == []
    finally:
        berth.close()
