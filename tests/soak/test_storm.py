"""Some seconds of the storm, and that it tells what is lost from what a kill accounts for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.soak.accounting import Fate, fate_of, wrong_counts
from tests.soak.client import Answer, Outcome, Trouble
from tests.soak.history import Fault, Harm, History
from tests.soak.operator_actions import GUEST
from tests.soak.requests import Ask
from tests.soak.scenario import Engine, Plan
from tests.soak.storm import run_storm
from tests.soak.storm_report import broken_in_storm, storm_table

KEY = "a-key"


@pytest.mark.timeout(300)
def test_a_short_storm_loses_and_leaves_nothing(tmp_path: Path) -> None:
    plan = Plan(Engine.FAKE, seconds=6.0, num_clients=6, seed=11, budget_mib=573)
    storm = run_storm(plan, tmp_path, lambda _: None)
    broken = broken_in_storm(storm)
    assert not broken, f"{storm_table(storm)}\n{broken[:10]}"


def history_of(*faults: tuple[Harm, float, float, str | None]) -> History:
    history = History()
    history.faults = [Fault("done", harm, model, began, ended) for harm, began, ended, model in faults]
    return history


def failed(trouble: Trouble, *, status: int = 0, code: str = "", model: str = "a") -> Answer:
    """From second 100 to 101."""
    ask = Ask(model, False, True, 4, "x")
    return Answer(ask, Outcome.FAILED, 0.5, "", trouble, status, code, began=100.0, ended=101.0)


KILLED = (Harm.KILL, 100.5, 102.0, None)
ENDED = (Harm.END, 100.5, 102.0, None)
HARMED = (Harm.ENGINE, 100.5, 100.7, "a")
LONG_AGO = (Harm.ENGINE, 30.0, 30.2, "a")
OTHER = (Harm.ENGINE, 100.5, 100.7, "b")
ORDERED = (Harm.NONE, 100.0, 101.0, "a")


@pytest.mark.parametrize(
    ("answer", "faults", "fate"),
    [
        (failed(Trouble.WIRE), [KILLED], Fate.CUT),
        (failed(Trouble.WIRE), [], Fate.LOST),
        (failed(Trouble.WIRE, status=200), [HARMED], Fate.CUT),
        (failed(Trouble.WIRE, status=200), [OTHER, ORDERED], Fate.LOST),
        (failed(Trouble.WIRE, status=200), [ENDED], Fate.LOST),  # an orderly end waits for it
        (failed(Trouble.WIRE), [ENDED], Fate.CUT),  # its connection was just being closed
        (failed(Trouble.EVENT, status=200, code="engine_disconnected"), [HARMED], Fate.CUT),
        (failed(Trouble.EVENT, status=200), [HARMED], Fate.LOST),  # an error that says nothing
        (failed(Trouble.UNREACHED), [KILLED], Fate.UNREACHED),
        (failed(Trouble.UNREACHED), [HARMED], Fate.LOST),
        (failed(Trouble.STATUS, status=503, code="shutting_down"), [ENDED], Fate.REFUSED),
        (failed(Trouble.STATUS, status=503, code="shutting_down"), [KILLED, HARMED], Fate.LOST),
        (failed(Trouble.STATUS, status=503, code="instance_failed"), [HARMED], Fate.REFUSED),
        (failed(Trouble.STATUS, status=503, code="instance_failed"), [LONG_AGO], Fate.REFUSED),  # put off
        (failed(Trouble.STATUS, status=502, code="engine_disconnected"), [LONG_AGO], Fate.LOST),
        (failed(Trouble.STATUS, status=503, code="instance_failed"), [ORDERED], Fate.LOST),
        (failed(Trouble.STATUS, status=503), [HARMED], Fate.LOST),
        (failed(Trouble.STATUS, status=409, code="wrong_state"), [HARMED], Fate.LOST),
        (failed(Trouble.STATUS, status=500, code="internal_error"), [KILLED], Fate.LOST),
        (failed(Trouble.STATUS, status=404, code="model_not_found"), [KILLED], Fate.LOST),
        (failed(Trouble.STATUS, status=404, code="model_not_found", model=GUEST), [], Fate.REFUSED),
        (failed(Trouble.SILENCE), [KILLED], Fate.LOST),
        (failed(Trouble.WRONG, status=200), [HARMED], Fate.LOST),
    ],
)
def test_only_what_was_harmed_may_fail_and_only_clearly(
    answer: Answer, faults: Iterable[tuple[Harm, float, float, str | None]], fate: Fate
) -> None:
    assert fate_of(answer, history_of(*faults)) is fate


def used(requests: int, tokens: int) -> list[dict[str, Any]]:
    key_id = hashlib.sha256(KEY.encode()).hexdigest()[:8]
    return [{"key_id": key_id, "model": "a", "requests": requests, "completion_tokens": tokens}]


@pytest.mark.parametrize(
    ("usage", "was_killed", "is_right"),
    [
        (used(2, 8), False, True),
        (used(3, 12), False, False),  # counted twice
        (used(1, 4), False, False),  # not counted
        ([], True, True),  # Berth was killed before it was stored
        (used(3, 12), True, False),
    ],
)
def test_usage_is_what_was_answered(usage: list[dict[str, Any]], was_killed: bool, is_right: bool) -> None:
    ask = Ask("a", False, True, 4, "x")
    answers = [Answer(ask, Outcome.ANSWERED, 0.1, began=100.0, ended=101.0) for _ in range(2)]
    history = history_of((Harm.KILL, 101.5, 103.0, None)) if was_killed else history_of()
    assert (wrong_counts(answers, [KEY], usage, history) == []) is is_right
