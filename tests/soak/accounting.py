"""Judges each attempt of a storm: was it answered, or does a known fault explain its failure?

An attempt is lost if it got neither a complete, correct response nor a clear error in time, or if no fault
explains its error: its engine was not harmed, and Berth was neither killed nor ended meanwhile.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.soak.client import Attempt, FailureKind, Outcome
from tests.soak.history import History, Impact
from tests.soak.operator_actions import GUEST

_REFUSALS = {429, 502, 503, 504}
_HARM_LASTS_S = 90.0  # the longest back-off of a model that fails repeatedly, and a start
_CUT_WITHIN_S = 5.0  # after the engine was harmed
_FLUSH_S = 2.0 + 3.0  # usage is stored every two seconds; a killed Berth loses the rest
_EXTRA_EVENTS = 2  # events of a broken stream are counted; one or two of them are not tokens


class Verdict(StrEnum):
    """The judgement of one attempt."""

    COMPLETE = "complete"
    LEFT = "left on purpose"
    REFUSED = "refused by status"
    CUT = "cut by a kill"
    UNREACHED = "nobody listened"
    LOST = "lost"


@dataclass(slots=True)
class Accounts:
    """All attempts by verdict, with a description of each lost attempt."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)  # by status and code
    lost: list[str] = field(default_factory=list)
    num_retried: int = 0


def settle(attempts: Sequence[Attempt], history: History) -> Accounts:
    accounts = Accounts()
    for attempt in attempts:
        verdict = verdict_of(attempt, history)
        accounts.verdicts[verdict] += 1
        accounts.num_retried += attempt.is_retry
        if verdict is Verdict.REFUSED:
            accounts.refusals[f"{attempt.status} {attempt.code}"] += 1
        if verdict is Verdict.LOST:
            accounts.lost.append(
                f"after {attempt.ended - attempt.began:.2f} s: {attempt.request}: {attempt.problem}"
            )
    return accounts


def verdict_of(attempt: Attempt, history: History) -> Verdict:
    if attempt.outcome is Outcome.ANSWERED:
        return Verdict.COMPLETE
    if attempt.outcome is Outcome.LEFT:
        return Verdict.LEFT
    if attempt.failure is FailureKind.UNREACHED:
        return Verdict.UNREACHED if history.is_berth_away(attempt.began, attempt.ended, 0.1) else Verdict.LOST
    if attempt.failure in (FailureKind.WIRE, FailureKind.EVENT) and _may_be_cut(attempt, history):
        return Verdict.CUT
    return Verdict.REFUSED if _may_be_refused(attempt, history) else Verdict.LOST


def _may_be_cut(attempt: Attempt, history: History) -> bool:
    """By a kill, or by an orderly end of Berth before the response began, on a closing connection."""
    if attempt.failure is FailureKind.EVENT and not attempt.code:
        return False
    if _is_harmed(attempt, history, _CUT_WITHIN_S) or history.has(
        Impact.KILL, attempt.began, attempt.ended, after_s=0.1
    ):
        return True
    return attempt.status == 0 and history.has(Impact.END, attempt.began, attempt.ended, after_s=0.1)


def _may_be_refused(attempt: Attempt, history: History) -> bool:
    """By a status, or by an error in a stream that waited for its model; with a code for the reason."""
    if attempt.failure not in (FailureKind.STATUS, FailureKind.EVENT) or not attempt.code:
        return False
    if attempt.status == 404:
        return attempt.code == "model_not_found" and attempt.request.model == GUEST
    if attempt.failure is FailureKind.STATUS and attempt.status not in _REFUSALS:
        return False
    if attempt.code == "shutting_down":
        return history.has(Impact.END, attempt.began, attempt.ended, after_s=0.1)
    lasts_s = _HARM_LASTS_S if attempt.code == "instance_failed" else _CUT_WITHIN_S
    was_away = history.is_berth_away(attempt.began, attempt.ended, _CUT_WITHIN_S)
    return was_away or _is_harmed(attempt, history, lasts_s)


def _is_harmed(attempt: Attempt, history: History, after_s: float) -> bool:
    return history.has(
        Impact.ENGINE, attempt.began, attempt.ended, after_s=after_s, model=attempt.request.model
    )


def wrong_counts(
    attempts: Sequence[Attempt], keys: Sequence[str], usage: Sequence[Mapping[str, Any]], history: History
) -> list[str]:
    """Impossible counts in `GET /usage`, by key: more than was requested, or less than was answered.

    Attempts that ended just before Berth was killed may be missing, and broken ones may count in part.
    """
    counted = {(entry["key_id"], entry["model"]): entry for entry in usage}
    problems = []
    for number, key in enumerate(keys):
        of_key = [attempt for attempt in attempts if attempt.client == number]
        for model in sorted({attempt.request.model for attempt in of_key}):
            known = counted.get((hashlib.sha256(key.encode()).hexdigest()[:8], model))
            wrong = _wrong_count(
                [attempt for attempt in of_key if attempt.request.model == model], known, history
            )
            problems += [f"usage of client {number} and {model}: {line}" for line in wrong]
    return problems


def _wrong_count(attempts: Sequence[Attempt], known: Mapping[str, Any] | None, history: History) -> list[str]:
    complete = [attempt for attempt in attempts if attempt.outcome is Outcome.ANSWERED]
    sure = [attempt for attempt in complete if not _may_be_unstored(attempt, history)]
    others = [attempt for attempt in attempts if attempt.outcome is not Outcome.ANSWERED]
    begun = [attempt for attempt in others if attempt.failure is not FailureKind.STATUS]
    bounds = {
        "requests": (len(sure), len(complete) + len(begun)),
        "completion_tokens": (
            sum(attempt.request.max_tokens for attempt in sure),
            sum(attempt.request.max_tokens for attempt in complete)
            + sum(attempt.request.max_tokens + _EXTRA_EVENTS for attempt in begun),
        ),
    }
    found = {name: known[name] if known is not None else 0 for name in bounds}
    return [
        f"{found[name]} {name}, of at least {least} and at most {most}"
        for name, (least, most) in bounds.items()
        if not least <= found[name] <= most
    ]


def _may_be_unstored(attempt: Attempt, history: History) -> bool:
    """Whether Berth may have been killed before storing it, which takes longer while Redis is away."""
    since, until = attempt.ended - 0.5, attempt.ended + _FLUSH_S
    away = [
        f.ended for f in history.faults if f.impact is Impact.STORE and f.began <= until and f.ended >= since
    ]
    return history.has(Impact.KILL, since, max([until, *(ended + _FLUSH_S for ended in away)]))
