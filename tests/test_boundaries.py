"""What import-linter can't see: app.py is a module, and what it loads must stay light."""

from __future__ import annotations

import subprocess
import sys
import tomllib

from tests.berth_process import ROOT

PROBE = """
import sys, app
heavy = {"torch", "transformers", "tokenizers", "engine", "huggingface_hub"} & set(sys.modules)
sys.exit(f"app.py loads {heavy}" if heavy else 0)
"""


def test_berth_itself_never_loads_torch_or_the_engine() -> None:
    ran = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f'VERSION = "{project["version"]}"' in (ROOT / "composition" / "version.py").read_text()
