"""The wheel works in a fresh environment, outside the checkout. Its dependencies are borrowed from ours."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement

from tests.berth_process import ROOT, free_port

pytestmark = pytest.mark.timeout(240)


def run(argv: list[str | Path], **more: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, timeout=120, **more
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment's `bin`, in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("package")
    tracked = run(["git", "ls-files", "-z"], cwd=ROOT).split("\0")
    source = folder / "source"  # built of what is tracked alone, as for a release
    for name in filter(None, tracked):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "training/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source])
    (wheel,) = folder.glob("berth-*.whl")
    environment = folder / "environment"
    run([sys.executable, "-m", "venv", "--without-pip", environment])
    python = environment / "bin" / "python"
    run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel])
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def environment_of(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"HOME": str(home), "NO_PROXY": "localhost,127.0.0.1"}


def test_the_command_line_says_its_version(installed: Path, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    said = run([installed / "berth", "--json", "version"], cwd=tmp_path, env=environment_of(tmp_path))
    assert json.loads(said)["version"] == version
    assert run([installed / "python", "-m", "berth", "help"], cwd=tmp_path, env=environment_of(tmp_path))


def test_it_serves_the_demo_model_and_keeps_what_it_writes_in_the_user_s_folder(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / ".berth").mkdir()
    (tmp_path / ".berth" / ".env").write_text("LOG_LEVEL=debug\n")
    port, engines = free_port(), free_port()
    argv = [installed / "berth", "serve", "--port", port, "--vllm-base-port", engines]
    with (tmp_path / "log").open("wb") as log:
        berth = subprocess.Popen(
            list(map(str, argv)), cwd=tmp_path, env=environment_of(tmp_path), stdout=log, stderr=log
        )
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=120, transport=httpx.HTTPTransport(retries=8)
        ) as client:
            body = {"model": "berth-demo", "prompt": "Once", "max_tokens": 4}
            answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 4
    finally:
        berth.send_signal(signal.SIGTERM)
        berth.wait(60)
    assert berth.returncode == 0, (tmp_path / "log").read_text()
    assert {"logs", "state"} <= {path.name for path in (tmp_path / ".berth").iterdir()}
    (home,) = installed.parent.glob("lib/python*/site-packages/berth/home")
    assert not {"logs", "state", ".env"} & {path.name for path in home.iterdir()}


def test_what_is_pinned_lies_within_the_ranges() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ranges = {one.name: one.specifier for one in map(Requirement, wanted)}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = {
        one.name: str(one.specifier)
        for line in lines
        if line[:1] not in ("", "#", "-")
        for one in [Requirement(line)]
    }
    assert ranges.keys() == pins.keys()
    for name, pin in pins.items():
        version = re.fullmatch(r"==(.+)", pin)
        assert version is not None and version[1] in ranges[name], name
