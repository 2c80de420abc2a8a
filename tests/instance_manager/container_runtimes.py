"""The container runtimes that tests can use: a fake `docker` anywhere, and docker and podman where they run.

Nothing is downloaded: the image of the real ones is an empty folder, into which the machine's own programs
and libraries are mounted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from instance_manager.types import InstanceSpec
from tests.berth_process import ROOT
from tests.fake_docker import FAKE_DOCKER
from tests.fake_docker_daemon import FAKE_DAEMON
from tests.fake_engine import FAKE_ENGINE

IMAGE = "berth-test-empty:latest"
_PYTHON = Path(os.path.realpath(sys.executable))
_MOUNTED = ("/usr", "/lib", "/lib64", "/bin", sys.base_prefix, str(ROOT / "tests"))


@dataclass(frozen=True)
class Runtime:
    """`env`: for Berth, so that it finds this one."""

    name: str  # in `runtime: …`
    env: dict[str, str] = field(default_factory=dict)
    is_real: bool = True
    daemon: subprocess.Popen[bytes] | None = None  # the fake's

    def __call__(self, *arguments: str) -> str:
        environ = {**os.environ, **self.env}
        program = shutil.which(self.name, path=environ["PATH"]) or self.name
        done = subprocess.run(
            [program, *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def containers(self, label: str) -> list[dict[str, Any]]:
        """Those with this label, ended ones too."""
        return [json.loads(self("inspect", "--type", "container", one))[0] for one in self.ids(label)]

    def ids(self, label: str) -> list[str]:
        return self("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={label}").split()

    def fake(self, *flags: str, **fields: Any) -> InstanceSpec:
        """A spec for a fake engine in a container."""
        placeholders = ["--host", "{host}", "--port", "{port}", "--model", "{model}"]
        command = [str(_PYTHON), "-S", FAKE_ENGINE, *placeholders, *flags]
        volumes = [f"{path}:{path}:ro" for path in dict.fromkeys(_MOUNTED) if os.path.isdir(path)]
        spec = InstanceSpec(
            "fake-model", "command", command=command, runtime=self.name, image=IMAGE, volumes=volumes
        )
        return replace(spec, **fields)


@contextmanager
def fake_docker(folder: Path) -> Iterator[Runtime]:
    """A fake daemon of its own."""
    path = folder / "docker.sock"
    daemon = subprocess.Popen(
        [sys.executable, "-S", FAKE_DAEMON, str(path)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert daemon.stdout is not None and daemon.stdout.readline() == b"listening\n"
        search_path = f"{_write_fake_docker(folder / 'bin')}:{os.environ['PATH']}"
        yield Runtime(
            "docker", {"PATH": search_path, "DOCKER_HOST": f"unix://{path}"}, is_real=False, daemon=daemon
        )
    finally:
        daemon.kill()
        daemon.communicate()


def _write_fake_docker(folder: Path) -> Path:
    """A folder for PATH with the program in it."""
    folder.mkdir()
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{FAKE_DOCKER}" "$@"\n')
    program.chmod(0o755)
    return folder


@cache
def why_not(name: str) -> str | None:
    """Why a real runtime can't be used here. Makes its image."""
    if shutil.which(name) is None:
        return f"there is no {name}"
    try:
        _make_image(name)
        run = [name, "run", "--rm", "--network", "host", "-v", "/usr:/usr:ro", "-v", "/lib:/lib:ro"]
        _checked([*run, "-v", "/lib64:/lib64:ro", IMAGE, "/usr/bin/env"])
    except (OSError, subprocess.SubprocessError) as error:
        return f"{name} can't run a container here: {getattr(error, 'stderr', '') or error}"
    return None


def _make_image(name: str) -> None:
    archive = Path(os.environ.get("TMPDIR", "/tmp"), f"berth-test-empty-{os.getpid()}.tar")  # noqa: S108
    try:
        with tarfile.open(archive, "w") as tar:
            for folder in ("tmp", "etc", "proc", "dev", "sys", "run"):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o777
                tar.addfile(entry)
        _checked([name, "import", str(archive), IMAGE])
    finally:
        archive.unlink(missing_ok=True)


def _checked(argv: list[str]) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30)
