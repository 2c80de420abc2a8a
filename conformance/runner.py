"""Runs the cases concurrently and classifies their outcomes."""

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
    """Results in the order of the cases. Cases marked `alone` run after all others."""
    slots = asyncio.Semaphore(num_at_once)

    async def run(case: Case) -> Result:
        async with slots:
            return await _run_case(api, case, abilities, differences)

    together = [case for case in cases if not case.alone]
    results = dict(zip(together, await asyncio.gather(*map(run, together)), strict=True))
    for case in cases:
        if case.alone:
            results[case] = await run(case)
    return [results[case] for case in cases]


async def _run_case(
    api: Api, case: Case, abilities: frozenset[Need], differences: Sequence[Difference]
) -> Result:
    missing = case.needs - abilities
    if missing:
        return Result(case.name, Outcome.SKIPPED, f"needs a server that {', '.join(sorted(missing))}")
    try:
        async with asyncio.timeout(CASE_TIMEOUT_S):
            await case.run(api)
    except NotApplicable as error:
        return Result(case.name, Outcome.SKIPPED, str(error))
    except Mismatch as error:
        detail = str(error)
    except TimeoutError:
        detail = f"not finished within {CASE_TIMEOUT_S} s"
    except (httpx.HTTPError, json.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError) as error:
        # An unexpected response format, or no response: the source line shows which part.
        place = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error} (reading the response: {place.line})"
    else:
        return Result(case.name, Outcome.PASSED)
    for difference in differences:
        if difference.covers(case.name):
            return Result(case.name, Outcome.DIFFERS, detail)
    return Result(case.name, Outcome.FAILED, detail)


def stale_differences(results: Iterable[Result], differences: Sequence[Difference]) -> list[Difference]:
    """Differences whose cases all pass, if any of them ran."""
    ran = [result for result in results if result.outcome is not Outcome.SKIPPED]
    stale = []
    for difference in differences:
        covered = [result.outcome for result in ran if difference.covers(result.name)]
        if covered and Outcome.DIFFERS not in covered:
            stale.append(difference)
    return stale
