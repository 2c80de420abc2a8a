"""docs/python.md is true: its programs run as they stand, in order, as one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.berth_process import ROOT


def test_every_program_of_the_page_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(programs) >= 3
    file = tmp_path / "program.py"
    file.write_text("\n".join(programs))
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, str(file)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "'color'" in ran.stdout
