"""The Dockerfile, as far as that goes without a builder: linted, and what it copies is enough to serve.

Nothing here builds an image; docs/deployment.md says so too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.settings import Settings
from tests.berth_process import EXIT_TIMEOUT_S, ROOT, BerthProcess, free_port
from tests.deploy.linters import linter

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
# Of what the environment in the image names, this much is no setting of Berth's.
NOT_SETTINGS = {"BERTH_PYTHON", "HOME", "PYTHONDONTWRITEBYTECODE", "XDG_CACHE_HOME"}


def instructions() -> list[tuple[str, str]]:
    """Each instruction and its arguments; continued lines joined, comments gone."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    split = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return [(name, arguments.strip()) for name, arguments in split]


def copied() -> list[tuple[list[str], str]]:
    """What is copied from the repository into the last stage, and where to."""
    last = [name for name, _ in instructions()].index("FROM", 2)
    found = [text.split() for name, text in instructions()[last:] if name == "COPY"]
    return [(sources, target) for *sources, target in found if not sources[0].startswith("--from")]


def image_environment(data: Path) -> dict[str, str]:
    """What ENV sets, with the volume in the folder `data`."""
    pairs = [pair for name, text in instructions() if name == "ENV" for pair in text.split()]
    environment = dict(pair.split("=", 1) for pair in pairs)
    return {name: value.replace("/data", str(data)) for name, value in environment.items()}


def health_check() -> list[str]:
    text = next(text for name, text in instructions() if name == "HEALTHCHECK")
    argv: list[str] = json.loads(text.partition("CMD ")[2])
    return [sys.executable, *argv[1:]]


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([linter("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


def test_the_builder_gets_what_is_copied_and_no_secrets() -> None:
    ignore = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignore, "all that is not named stays outside"
    sent = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    wanted = {source.rstrip("/") for sources, _ in copied() for source in sources}
    assert sent == wanted | {"requirements.txt"}
    assert not sent & {".env", ".git", "state", "logs", "models"}


def test_every_package_of_ours_is_copied() -> None:
    sources = {source.rstrip("/") for sources, _ in copied() for source in sources}
    assert {
        "api",
        "cli",
        "composition",
        "configs",
        "engine",
        "host_limits",
        "instance_manager",
        "log_output",
        "app.py",
    } <= sources


def test_it_runs_as_nobody_in_particular() -> None:
    names = [name for name, _ in instructions()]
    user = dict(instructions())["USER"]
    assert user.isdigit() and int(user) >= 1000
    assert names.index("USER") < names.index("CMD")
    assert [name for name, _ in instructions()[names.index("USER") :]].count("RUN") == 0


def test_its_environment_is_made_of_settings() -> None:
    known = {name.upper() for name in Settings.model_fields}
    assert image_environment(Path("/data")).keys() - NOT_SETTINGS <= known


def test_what_is_copied_serves_and_is_found_healthy(tmp_path: Path) -> None:
    """From a folder with nothing else in it; the health check is the image's own command."""
    app, data = tmp_path / "app", tmp_path / "data"
    data.mkdir()
    for sources, target in copied():
        for source in sources:
            origin = ROOT / source
            if origin.is_dir():
                leave_out = shutil.ignore_patterns("__pycache__")
                shutil.copytree(origin, app / target, ignore=leave_out, dirs_exist_ok=True)
            else:
                (app / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(origin, app / target)
    port = str(free_port())
    settings = image_environment(data) | {"APP_PORT": port, "MODEL_DIRS": str(app / "models")}
    health = subprocess.run(health_check(), env=os.environ | settings, capture_output=True, check=False)
    assert health.returncode != 0, "nobody serves yet"
    berth = BerthProcess(data, root=app, **settings)
    try:
        berth.wait_until_serving()
        subprocess.run(health_check(), env=os.environ | settings, timeout=EXIT_TIMEOUT_S, check=True)
        with berth.client() as client:
            names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert "berth-demo" in names
        berth.terminate()
        assert berth.wait() == 0, berth.output()
    finally:
        berth.close()


@pytest.mark.parametrize("argument", ["BASE", "TORCH_INDEX", "COMPILER"])
def test_the_build_arguments_are_used(argument: str) -> None:
    text = DOCKERFILE.read_text()
    assert f"ARG {argument}" in text and f"${{{argument}" in text
