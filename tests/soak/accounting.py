"""What became of each attempt in a storm, and whether what was done to Berth accounts for it.

Lost is a request that got neither a whole, right answer nor a clear error in its time, or whose error nothing
accounts for: its engine was not harmed, and Berth was neither killed nor ended meanwhile.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.soak.client import Answer, Outcome, Trouble
from tests.soak.history import Harm, History
from tests.soak.operator_actions import GUEST

_REFUSALS = {429, 502, 503, 504}
_HARM_LASTS_S = 330.0  # that a model which died again and again is put off: the longest back-off, and a start
_CUT_WITHIN_S = 5.0  # of what harmed the engine
_FLUSH_S = 2.0 + 3.0  # usage is stored every two seconds; what a killed Berth had not stored is lost
_EXTRA_EVENTS = 2  # of a stream that broke: its events are counted, and one or two are not tokens


class Fate(StrEnum):
    """Of an attempt."""

    COMPLETE = "complete"
    LEFT = "left on purpose"
    REFUSED = "refused by status"
    CUT = "cut by a kill"
    UNREACHED = "nobody listened"
    LOST = "lost"


@dataclass(slots=True)
class Accounts:
    """All attempts by fate; what is lost, in words."""

    fates: Counter[Fate] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)  # by status and code
    lost: list[str] = field(default_factory=list)
    num_retried: int = 0


def settle(answers: Sequence[Answer], history: History) -> Accounts:
    accounts = Accounts()
    for one in answers:
        fate = fate_of(one, history)
        accounts.fates[fate] += 1
        accounts.num_retried += one.is_retry
        if fate is Fate.REFUSED:
            accounts.refusals[f"{one.status} {one.code}"] += 1
        if fate is Fate.LOST:
            accounts.lost.append(f"after {one.ended - one.began:.2f} s: {one.ask}: {one.problem}")
    return accounts


def fate_of(one: Answer, history: History) -> Fate:
    if one.outcome is Outcome.ANSWERED:
        return Fate.COMPLETE
    if one.outcome is Outcome.LEFT:
        return Fate.LEFT
    if one.trouble is Trouble.UNREACHED:
        return Fate.UNREACHED if history.is_berth_away(one.began, one.ended, 0.1) else Fate.LOST
    if one.trouble in (Trouble.WIRE, Trouble.EVENT) and _may_be_cut(one, history):
        return Fate.CUT
    return Fate.REFUSED if _may_be_refused(one, history) else Fate.LOST


def _may_be_cut(one: Answer, history: History) -> bool:
    """By a kill; at an orderly end of Berth only what had not begun, as its connection was just closing."""
    if one.trouble is Trouble.EVENT and not one.code:
        return False
    if _is_harmed(one, history, _CUT_WITHIN_S) or history.has(Harm.KILL, one.began, one.ended, after_s=0.1):
        return True
    return one.status == 0 and history.has(Harm.END, one.began, one.ended, after_s=0.1)


def _may_be_refused(one: Answer, history: History) -> bool:
    """By a status, or by an error in a stream that had waited for its model; with a code that says why."""
    if one.trouble not in (Trouble.STATUS, Trouble.EVENT) or not one.code:
        return False
    if one.status == 404:
        return one.code == "model_not_found" and one.ask.model == GUEST
    if one.trouble is Trouble.STATUS and one.status not in _REFUSALS:
        return False
    if one.code == "shutting_down":
        return history.has(Harm.END, one.began, one.ended, after_s=0.1)
    lasts_s = _HARM_LASTS_S if one.code == "instance_failed" else _CUT_WITHIN_S
    was_away = history.is_berth_away(one.began, one.ended, _CUT_WITHIN_S)
    return was_away or _is_harmed(one, history, lasts_s)


def _is_harmed(one: Answer, history: History, after_s: float) -> bool:
    return history.has(Harm.ENGINE, one.began, one.ended, after_s=after_s, model=one.ask.model)


def wrong_counts(
    answers: Sequence[Answer], keys: Sequence[str], usage: Sequence[Mapping[str, Any]], history: History
) -> list[str]:
    """What `GET /usage` says of each key and can't be: more than was asked for, less than was answered.

    Of answers that ended just before Berth was killed nobody knows, nor how far those came that broke.
    """
    counted = {(one["key_id"], one["model"]): one for one in usage}
    problems = []
    for number, key in enumerate(keys):
        of_key = [one for one in answers if one.client == number]
        for model in sorted({one.ask.model for one in of_key}):
            known = counted.get((hashlib.sha256(key.encode()).hexdigest()[:8], model))
            wrong = _wrong_count([one for one in of_key if one.ask.model == model], known, history)
            problems += [f"usage of client {number} and {model}: {line}" for line in wrong]
    return problems


def _wrong_count(answers: Sequence[Answer], known: Mapping[str, Any] | None, history: History) -> list[str]:
    whole = [one for one in answers if one.outcome is Outcome.ANSWERED]
    sure = [one for one in whole if not _may_be_forgotten(one, history)]
    others = [one for one in answers if one.outcome is not Outcome.ANSWERED]
    begun = [one for one in others if one.trouble is not Trouble.STATUS]
    bounds = {
        "requests": (len(sure), len(whole) + len(begun)),
        "completion_tokens": (
            sum(one.ask.max_tokens for one in sure),
            sum(one.ask.max_tokens for one in whole)
            + sum(one.ask.max_tokens + _EXTRA_EVENTS for one in begun),
        ),
    }
    found = {name: known[name] if known is not None else 0 for name in bounds}
    return [
        f"{found[name]} {name}, of at least {least} and at most {most}"
        for name, (least, most) in bounds.items()
        if not least <= found[name] <= most
    ]


def _may_be_forgotten(one: Answer, history: History) -> bool:
    """Whether Berth was killed before it had stored it: where Redis was away, that takes longer."""
    since, until = one.ended - 0.5, one.ended + _FLUSH_S
    away = [f.ended for f in history.faults if f.harm is Harm.STORE and f.began <= until and f.ended >= since]
    return history.has(Harm.KILL, since, max([until, *(ended + _FLUSH_S for ended in away)]))
