"""The systemd unit: verified by systemd itself, and its times and settings agree with Berth's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs.settings import Settings
from tests.berth_process import ROOT
from tests.deploy.linters import linter

UNIT = ROOT / "deploy" / "berth.service"
MAX_EXPOSURE = 5.0  # of 10, as `systemd-analyze security` counts; a unit without any protection has 9.6


def values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The unit as it would be for this checkout: systemd looks whether the program exists."""
    text = UNIT.read_text().replace("/opt/berth/.venv/bin/python", sys.executable)
    path = tmp_path / "berth.service"
    path.write_text(text.replace("/opt/berth", str(ROOT)))
    return path


def analyze(*arguments: str | Path) -> str:
    argv = [linter("systemd-analyze"), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_takes_it(here: Path) -> None:
    assert analyze("verify", here) == ""


def test_its_exposure_is_low(here: Path) -> None:
    told = analyze("security", "--offline=yes", "--no-pager", here)
    exposure = re.search(r"exposure level for berth.service: ([\d.]+)", told)
    assert exposure and float(exposure[1]) <= MAX_EXPOSURE, told


def test_a_stop_leaves_time_to_drain() -> None:
    (timeout,) = values("TimeoutStopSec")
    fields = Settings.model_fields
    assert int(timeout) > fields["drain_timeout"].default + fields["stop_grace"].default


def test_berth_alone_is_asked_to_end() -> None:
    assert (values("KillMode"), values("OOMPolicy")) == (["process"], ["continue"])


def test_a_wrong_setting_is_not_tried_again() -> None:
    assert (values("Restart"), values("RestartPreventExitStatus")) == (["on-failure"], ["2"])


def test_what_it_sets_are_settings_in_folders_that_it_may_write() -> None:
    known = {name.upper() for name in Settings.model_fields} | {"HOME", "XDG_CACHE_HOME"}
    pairs = [pair.split("=", 1) for line in values("Environment") for pair in line.split()]
    assert pairs
    for name, value in pairs:
        assert name in known
        assert value.startswith(("%S/berth", "%L/berth", "%C/berth"))
