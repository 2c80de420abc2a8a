"""What clients see of a model's state, in llama.cpp's words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from api.control.model_view import load_progress, status_object
from instance_manager.fleet.models import Model

STAGES = ["download", "weights", "warm-up"]


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (None, None),
        (
            SimpleNamespace(phase="weights", fraction=0.5),
            {"stages": STAGES, "current": "weights", "value": 0.5},
        ),
        (SimpleNamespace(phase="warm-up", fraction=None), {"stages": STAGES, "current": "warm-up"}),
    ],
)
def test_the_progress_of_a_start(
    monkeypatch: pytest.MonkeyPatch, found: object, shown: dict[str, Any] | None
) -> None:
    monkeypatch.setattr(Model, "load_progress", found, raising=False)
    model = Model("one", None, 0, lambda: 0.0)
    assert load_progress(model) == shown
    assert status_object(model, public=False) == {"value": "unloaded"}, "only while it starts"
    model.start_requested = True
    expected = {"value": "loading"} | ({"progress": shown} if shown else {})
    assert status_object(model, public=True) == expected
