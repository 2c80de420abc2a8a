"""`stop_command`: an engine is asked to end in its owner's way; signals follow only where that fails."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from instance_manager.types import InstanceState
from tests.instance_manager.conftest import ManagerFactory, fake, running

# Writes down what it was called with, then does as told.
SCRIPT = """
import json, os, signal, sys, time
report, action, *values = sys.argv[1:]
open(report, "w").write(json.dumps(values))
print("asked to end", flush=True)
if action == "kill":
    os.kill(int(values[0]), signal.SIGKILL)
time.sleep(60 if action == "hang" else 0)
sys.exit(3 if action == "fail" else 0)
"""


def stop_command(report: Path, action: str) -> list[str]:
    return [sys.executable, "-S", "-c", SCRIPT, str(report), action, "{pid}", "{port}", "{model}", "{host}"]


async def test_the_command_ends_the_engine_without_a_signal(managing: ManagerFactory, tmp_path: Path) -> None:
    """The engine ignores SIGTERM: had Berth sent it, it would have waited for the end of the grace."""
    report = tmp_path / "report"
    async with managing(stop_grace_s=20.0) as manager:
        instance = await running(manager, fake("--ignore-term", stop_command=stop_command(report, "kill")))
        expected = [str(instance.pid), str(instance.port), "fake-model", "127.0.0.1"]
        began = time.monotonic()
        await manager.stop(instance.instance_id)
        assert time.monotonic() - began < 15
        assert (instance.state, instance.failure) == (InstanceState.STOPPED, None)
        assert report.read_text() == str(expected).replace("'", '"')
        assert "asked to end" in manager.read_log(instance.instance_id, 5)


@pytest.mark.parametrize("action", ["fail", "hang", "nothing"])
async def test_where_it_fails_hangs_or_has_no_effect_signals_end_the_engine(
    managing: ManagerFactory, tmp_path: Path, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with managing(stop_grace_s=1.0) as manager:
        spec = fake("--grandchild", stop_command=stop_command(tmp_path / "report", action))
        instance = await running(manager, spec)
        began = time.monotonic()
        await manager.stop(instance.instance_id)
        assert time.monotonic() - began < 10
        assert (instance.state, instance.failure) == (InstanceState.STOPPED, None)
    said = {"fail": "exited with 3", "hang": "didn't end within 1 s", "nothing": ""}[action]
    assert said in caplog.text


async def test_a_command_that_cannot_be_run_is_logged(
    managing: ManagerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async with managing() as manager:
        instance = await running(manager, fake(stop_command=["/nowhere/program", "{pid}"]))
        await manager.stop(instance.instance_id)
        assert instance.state is InstanceState.STOPPED
    assert "'/nowhere/program' can't be run" in caplog.text


async def test_an_engine_that_has_ended_by_itself_is_not_asked_to(
    managing: ManagerFactory, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    async with managing() as manager:
        spec = fake("--fail-with", "bad luck", stop_command=stop_command(report, "nothing"))
        instance = await manager.wait_ready(manager.create(spec).instance_id, 60)
        assert instance.state is InstanceState.FAILED
    assert not report.exists()
