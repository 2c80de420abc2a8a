"""Clients that people use, unmodified, against a Berth with keys: each runs as a program of its own.

`make test-clients` sets up their environments, in `.clients/`. Each program tells in JSON what it got: the
arguments of the tool that the model called, the text of a stream, the answer of a later turn.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.berth_process import BerthProcess, running_berth

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).with_name("scripts")
CLIENTS = ROOT / ".clients"
PYTHON = CLIENTS / "python" / "bin" / "python"
OLD_PYTHON = CLIENTS / "old" / "bin" / "python"
DEV_PYTHON = ROOT / ".venv" / "bin" / "python"
NODE = Path("node")
KEY = "a-key-for-requests"


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    folder = tmp_path_factory.mktemp("clients")
    catalog = folder / "models.yaml"
    catalog.write_text(json.dumps({"models": {"story": {"model": "berth-demo", "aliases": ["gpt-4o-mini"]}}}))
    keys = {"API_KEYS": KEY, "ADMIN_API_KEYS": "an-admins-key"}
    with running_berth(folder, MODELS_FILE=str(catalog), **keys) as berth:
        yield berth


def run(berth: BerthProcess, program: Path, script: str, provider: str = "", model: str = "story") -> Any:
    """What the script printed."""
    environment = {
        **os.environ,
        "BASE_URL": berth.url,
        "API_KEY": KEY,
        "MODEL": model,
        "PROVIDER": provider,
        "NO_PROXY": "*",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
    }
    path = SCRIPTS / script
    if program is NODE:  # modules are looked up from the script's own folder
        path = CLIENTS / "node" / script
        path.write_text((SCRIPTS / script).read_text())
    finished = subprocess.run(
        [program, path],
        env=environment,
        cwd=CLIENTS,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads(finished.stdout.splitlines()[-1])


def check_session(got: Any) -> None:
    """The tool was called with the city, the conversation went on after it, and a stream brought text."""
    assert got["asked"] == ["Oslo"]
    assert got["next"]
    assert got["streamed"]


@pytest.mark.parametrize("provider", ["openai", "openai-chat", "anthropic", "compatible"])
def test_the_ai_sdk(berth: BerthProcess, provider: str) -> None:
    got = run(berth, NODE, "ai_sdk.mjs", provider)
    check_session(got)
    assert got["steps"] == 2
    assert "Berth" in got["plain"]
    assert isinstance(got["object"]["city"], str)
    assert got["tokens"] > 0


@pytest.mark.parametrize("provider", ["chat", "responses"])
@pytest.mark.parametrize("program", [DEV_PYTHON, PYTHON], ids=["pinned", "newer"])
def test_the_openai_client(berth: BerthProcess, program: Path, provider: str) -> None:
    check_session(run(berth, program, "openai_client.py", provider, model="gpt-4o-mini"))


@pytest.mark.parametrize("program", [DEV_PYTHON, OLD_PYTHON], ids=["new", "old"])
def test_the_anthropic_client(berth: BerthProcess, program: Path) -> None:
    got = run(berth, program, "anthropic_client.py")
    check_session(got)
    assert got["error"] == "not_found_error"


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_litellm(berth: BerthProcess, provider: str) -> None:
    got = run(berth, PYTHON, "with_litellm.py", provider)
    check_session(got)
    assert got["error"] == "context"


@pytest.mark.parametrize("provider", ["chat", "responses"])
def test_openai_agents(berth: BerthProcess, provider: str) -> None:
    check_session(run(berth, PYTHON, "with_openai_agents.py", provider))


@pytest.mark.parametrize("provider", ["chat", "responses"])
def test_agent_framework(berth: BerthProcess, provider: str) -> None:
    check_session(run(berth, PYTHON, "with_agent_framework.py", provider))
