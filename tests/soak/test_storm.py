"""A few seconds of the storm, and tests that it distinguishes losses from failures explained by a fault."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.soak.accounting import Verdict, verdict_of, wrong_counts
from tests.soak.client import Attempt, FailureKind, Outcome
from tests.soak.history import Fault, History, Impact
from tests.soak.operator_actions import GUEST
from tests.soak.requests import Request
from tests.soak.scenario import Engine, Plan
from tests.soak.storm import run_storm
from tests.soak.storm_report import broken_in_storm, storm_table

KEY = "a-key"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_storm_loses_and_leaks_nothing(tmp_path: Path) -> None:
    plan = Plan(Engine.FAKE, seconds=6.0, num_clients=6, seed=11, budget_mib=573)
    storm = run_storm(plan, tmp_path, lambda _: None)
    broken = broken_in_storm(storm)
    assert not broken, f"{storm_table(storm)}\n{broken[:10]}"


def history_of(*faults: tuple[Impact, float, float, str | None]) -> History:
    history = History()
    history.faults = [Fault("done", impact, model, began, ended) for impact, began, ended, model in faults]
    return history


def failed(failure: FailureKind, *, status: int = 0, code: str = "", model: str = "a") -> Attempt:
    """An attempt from second 100 to 101."""
    request = Request(model, False, True, 4, "x")
    return Attempt(request, Outcome.FAILED, 0.5, "", failure, status, code, began=100.0, ended=101.0)


KILLED = (Impact.KILL, 100.5, 102.0, None)
ENDED = (Impact.END, 100.5, 102.0, None)
HARMED = (Impact.ENGINE, 100.5, 100.7, "a")
LONG_AGO = (Impact.ENGINE, 30.0, 30.2, "a")
OTHER = (Impact.ENGINE, 100.5, 100.7, "b")
ORDERED = (Impact.NONE, 100.0, 101.0, "a")


@pytest.mark.parametrize(
    ("attempt", "faults", "verdict"),
    [
        (failed(FailureKind.WIRE), [KILLED], Verdict.CUT),
        (failed(FailureKind.WIRE), [], Verdict.LOST),
        (failed(FailureKind.WIRE, status=200), [HARMED], Verdict.CUT),
        (failed(FailureKind.WIRE, status=200), [OTHER, ORDERED], Verdict.LOST),
        (failed(FailureKind.WIRE, status=200), [ENDED], Verdict.LOST),  # an orderly end waits for it
        (failed(FailureKind.WIRE), [ENDED], Verdict.CUT),  # its connection was just being closed
        (failed(FailureKind.EVENT, status=200, code="engine_disconnected"), [HARMED], Verdict.CUT),
        (failed(FailureKind.EVENT, status=200), [HARMED], Verdict.LOST),  # an error without a code
        (failed(FailureKind.UNREACHED), [KILLED], Verdict.UNREACHED),
        (failed(FailureKind.UNREACHED), [HARMED], Verdict.LOST),
        (failed(FailureKind.STATUS, status=503, code="shutting_down"), [ENDED], Verdict.REFUSED),
        (failed(FailureKind.STATUS, status=503, code="shutting_down"), [KILLED, HARMED], Verdict.LOST),
        (failed(FailureKind.STATUS, status=503, code="instance_failed"), [HARMED], Verdict.REFUSED),
        (
            failed(FailureKind.STATUS, status=503, code="instance_failed"),
            [LONG_AGO],
            Verdict.REFUSED,
        ),  # back-off
        (failed(FailureKind.STATUS, status=502, code="engine_disconnected"), [LONG_AGO], Verdict.LOST),
        (failed(FailureKind.STATUS, status=503, code="instance_failed"), [ORDERED], Verdict.LOST),
        (failed(FailureKind.STATUS, status=503), [HARMED], Verdict.LOST),
        (failed(FailureKind.STATUS, status=409, code="wrong_state"), [HARMED], Verdict.LOST),
        (failed(FailureKind.STATUS, status=500, code="internal_error"), [KILLED], Verdict.LOST),
        (failed(FailureKind.STATUS, status=404, code="model_not_found"), [KILLED], Verdict.LOST),
        (failed(FailureKind.STATUS, status=404, code="model_not_found", model=GUEST), [], Verdict.REFUSED),
        (failed(FailureKind.SILENCE), [KILLED], Verdict.LOST),
        (failed(FailureKind.WRONG, status=200), [HARMED], Verdict.LOST),
    ],
)
def test_a_failure_is_accepted_only_after_a_fault_and_with_a_clear_error(
    attempt: Attempt, faults: Iterable[tuple[Impact, float, float, str | None]], verdict: Verdict
) -> None:
    assert verdict_of(attempt, history_of(*faults)) is verdict


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
def test_usage_matches_the_answered_requests(
    usage: list[dict[str, Any]], was_killed: bool, is_right: bool
) -> None:
    request = Request("a", False, True, 4, "x")
    attempts = [Attempt(request, Outcome.ANSWERED, 0.1, began=100.0, ended=101.0) for _ in range(2)]
    history = history_of((Impact.KILL, 101.5, 103.0, None)) if was_killed else history_of()
    assert (wrong_counts(attempts, [KEY], usage, history) == []) is is_right
