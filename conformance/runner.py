"""Runs the cases, several at once, and sorts their outcomes."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import httpx

from conformance.case import Case, Need
from conformance.checks import Mismatch, NotApplicable
from conformance.client import Api
from conformance.differences import Difference

CASE_TIMEOUT_S = 120


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    DIFFERS = "intended difference"
    SKIPPED = "not applicable"


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    outcome: Outcome
    detail: str = ""


async def run_cases(
    api: Api,
    cases: Sequence[Case],
    abilities: frozenset[Need],
    differences: Sequence[Difference],
    *,
    num_at_once: int,
) -> list[Result]:
    """In the order of the cases; those that must be alone run after all others."""
    slots = asyncio.Semaphore(num_at_once)

    async def ask(case: Case) -> Result:
        async with slots:
            return await _ask(api, case, abilities, differences)

    together = [case for case in cases if not case.alone]
    results = dict(zip(together, await asyncio.gather(*map(ask, together)), strict=True))
    for case in cases:
        if case.alone:
            results[case] = await ask(case)
    return [results[case] for case in cases]


async def _ask(api: Api, case: Case, abilities: frozenset[Need], differences: Sequence[Difference]) -> Result:
    missing = case.needs - abilities
    if missing:
        return Result(case.name, Outcome.SKIPPED, f"needs a server that {', '.join(sorted(missing))}")
    try:
        async with asyncio.timeout(CASE_TIMEOUT_S):
            await case.ask(api)
    except NotApplicable as error:
        return Result(case.name, Outcome.SKIPPED, str(error))
    except Mismatch as error:
        detail = str(error)
    except TimeoutError:
        detail = f"no end within {CASE_TIMEOUT_S} s"
    except (httpx.HTTPError, json.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError) as error:
        # An answer of another shape than the case reads, or none: the place tells which part it was.
        place = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error} (reading the answer: {place.line})"
    else:
        return Result(case.name, Outcome.PASSED)
    for difference in differences:
        if difference.covers(case.name):
            return Result(case.name, Outcome.DIFFERS, detail)
    return Result(case.name, Outcome.FAILED, detail)


def stale_differences(results: Iterable[Result], differences: Sequence[Difference]) -> list[Difference]:
    """Those that no case showed, though some were asked."""
    asked = [result for result in results if result.outcome is not Outcome.SKIPPED]
    stale = []
    for difference in differences:
        covered = [result.outcome for result in asked if difference.covers(result.name)]
        if covered and Outcome.DIFFERS not in covered:
            stale.append(difference)
    return stale
