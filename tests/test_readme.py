"""The README is true: its commands are run as they stand, against a Berth on another port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.berth_process import ROOT, running_berth

pytestmark = pytest.mark.timeout(240)


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language, in order."""
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_every_command_works_as_written(tmp_path: Path) -> None:
    """In the order of the page; the Python example while the demo instance runs."""
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) >= 6
    with running_berth(tmp_path) as berth:
        for language, code in found:
            argv = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
            ran = subprocess.run(
                [*argv, code.replace("localhost:5000", f"localhost:{berth.port}")],
                cwd=tmp_path,
                env={**os.environ, "NO_PROXY": "localhost"},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}\n{berth.output()}"
            assert ran.stdout.strip() or "-X DELETE" in code, code


def test_the_two_commands_are_make_targets() -> None:
    plain = "\n".join(blocks(""))
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make ([a-z-]+)", plain, re.MULTILINE)
    assert {"serve", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
