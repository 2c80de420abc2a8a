"""The documentation is true: files that it names exist, routes are described, the README's commands run."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:api|instance_manager|engine|docs|configs)/[\w/.]*|app\.py)`", text)
    assert len(named) > 25
    assert [name for name in named if not (ROOT / name).exists()] == []
