"""One real Berth for all tests of the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.berth_process import BerthProcess, running_berth
from tests.cli import talking_engine
from tests.fake_engine import command
from tests.fake_hub import FakeHub, running_hub

CATALOG = """\
# the catalog of the tests
models:
  talker:
    engine: command
    command: {talker}  # a stand-in
    aliases: [chatty]
  team/quiet:
    engine: command
    command: {quiet}
  changing:
    model: berth-demo
  broken:
    engine: command
    command: {broken}
"""


@pytest.fixture(scope="session")
def hub() -> Iterator[FakeHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "models.yaml"
    talker = [sys.executable, talking_engine.__file__, "{port}"]
    commands = {"talker": talker, "quiet": command(), "broken": command("--fail-with", "no such thing")}
    path.write_text(CATALOG.format_map({name: json.dumps(argv) for name, argv in commands.items()}))
    return path


@pytest.fixture(scope="session")
def server(hub: FakeHub, catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    folder = tmp_path_factory.mktemp("berth")
    home = str(folder / "hub")
    settings = {"HF_HOME": home, "HF_HUB_CACHE": home, "HF_ENDPOINT": hub.url, "MODELS_FILE": str(catalog)}
    with running_berth(folder, **settings) as berth:
        yield berth


@pytest.fixture
def url(server: BerthProcess) -> str:
    return server.url
