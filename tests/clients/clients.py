"""Runs a client's script in the environment that `make test-clients` has set up for it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.berth_process import BerthProcess

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).with_name("scripts")
CLIENTS = ROOT / ".clients"
KEY = "a-key-for-requests"

_PROGRAMS = {
    "development": ROOT / ".venv" / "bin" / "python",
    **{name: CLIENTS / name / "bin" / "python" for name in ("python", "old", "frameworks")},
    "node": Path("node"),
}


def run(
    berth: BerthProcess,
    environment: str,
    script: str,
    provider: str = "",
    model: str = "story",
    more: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """What the script printed. `provider`: which of its ways it goes; `more`: further variables for it."""
    path = SCRIPTS / script
    if environment == "node":  # modules are looked up from the script's own folder
        path = CLIENTS / "node" / script
        for source in (SCRIPTS / script, SCRIPTS / "session.mjs"):
            (CLIENTS / "node" / source.name).write_text(source.read_text())
    finished = subprocess.run(
        [_PROGRAMS[environment], path],
        env={**os.environ, **_variables(berth, provider, model), **more},
        cwd=CLIENTS,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads(finished.stdout.splitlines()[-1])


def _variables(berth: BerthProcess, provider: str, model: str) -> dict[str, str]:
    return {
        "BASE_URL": berth.url,
        "API_KEY": KEY,
        "MODEL": model,
        "PROVIDER": provider,
        "NO_PROXY": "*",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches one
    }
