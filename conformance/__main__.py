"""`python -m conformance --base-url http://… [--model NAME]` runs the cases and prints the results.

The exit status is 1 if any case fails.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

import httpx

from conformance.cases import all_cases
from conformance.differences import Difference, intended_differences
from conformance.probe import Unusable, probe
from conformance.runner import CASE_TIMEOUT_S, Outcome, Result, run_cases, stale_differences


def main() -> None:
    options = _parse()
    try:
        results, stale = asyncio.run(_run(options))
    except (Unusable, httpx.HTTPError) as error:
        sys.exit(f"{options.base_url} can't be tested: {error}")
    _report(results, stale, verbose=options.verbose)
    sys.exit(any(result.outcome is Outcome.FAILED for result in results) or bool(stale))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("--base-url", required=True, help="the server's URL, without /v1")
    parser.add_argument("--model", help="default: the first model that the server lists")
    parser.add_argument("--api-key", help="sent as a bearer token")
    parser.add_argument("--only", default="*", help="run only cases whose names match, such as 'chat/*'")
    parser.add_argument("--at-once", type=int, default=4, help="number of concurrent cases")
    parser.add_argument("--verbose", action="store_true", help="list every case, and why cases were skipped")
    return parser.parse_args()


async def _run(options: argparse.Namespace) -> tuple[list[Result], list[Difference]]:
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    base_url = options.base_url.rstrip("/").removesuffix("/v1")
    async with httpx.AsyncClient(
        base_url=base_url, headers=headers, timeout=CASE_TIMEOUT_S, trust_env=False
    ) as http:
        api, abilities = await probe(http, options.model)
        cases = [case for case in all_cases() if fnmatchcase(case.name, options.only)]
        differences = intended_differences(api.facts.owner)
        results = await run_cases(api, cases, abilities, differences, num_at_once=options.at_once)
    return results, stale_differences(results, differences)


def _report(results: Sequence[Result], stale: Sequence[Difference], *, verbose: bool) -> None:
    shown = list(Outcome) if verbose else [Outcome.FAILED, Outcome.DIFFERS]
    for result in results:
        if result.outcome in shown:
            print(
                f"{result.outcome.upper():20} {result.name}"
                + (f"\n    {result.detail}" * bool(result.detail))
            )
    for difference in stale:
        print(f"{'STALE':20} {difference.ours}: no longer a difference; remove it")
    groups: dict[str, Counter[Outcome]] = {}
    for result in results:
        groups.setdefault(result.name.partition("/")[0], Counter())[result.outcome] += 1
    print(f"\n{'':16}" + "".join(f"{outcome:>22}" for outcome in Outcome))
    for name, counts in [*groups.items(), ("all", sum(groups.values(), Counter()))]:
        print(f"{name:16}" + "".join(f"{counts[outcome]:>22}" for outcome in Outcome))


if __name__ == "__main__":
    main()
