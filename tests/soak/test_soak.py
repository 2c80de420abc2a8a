"""A few seconds of the soak, with engines that start in a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.report import broken_promises, shown, table
from tests.soak.scenario import Engine, Plan, run


@pytest.mark.timeout(300)
def test_nothing_is_lost_while_models_take_turns_in_memory(tmp_path: Path) -> None:
    result = run(Plan(Engine.FAKE, seconds=5.0, num_clients=8, calibration_s=1.0), tmp_path, lambda _: None)
    broken = broken_promises(result)
    assert not broken, f"{table(result)}\n{shown(broken)}"
