"""`python -m tests.soak`: run it and print the results; exit 1 if a guarantee was violated."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.soak.report import broken_promises, shown, table
from tests.soak.scenario import Engine, Plan, run
from tests.soak.storm import run_storm
from tests.soak.storm_report import broken_in_storm, storm_table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="of traffic (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="at once (default: %(default)s)")
    parser.add_argument(
        "--models", type=int, default=3, help="all but one of which fit in memory (default: %(default)s)"
    )
    parser.add_argument("--engine", type=Engine, choices=list(Engine), default=Engine.REAL)
    parser.add_argument("--seed", type=int, help="of the random choices (default: random, printed)")
    parser.add_argument(
        "--faults", action="store_true", help="kill Berth, shims, engines, Redis; delete, stop, sleep, reload"
    )
    parser.add_argument("--store", choices=("sqlite", "redis"), default="sqlite", help="with --faults")
    parser.add_argument(
        "--budget", type=int, metavar="MIB", help="with --faults: the budget that an earlier run printed"
    )
    parser.add_argument("--pace", type=float, help="with --faults: 0.5 for twice as many faults")
    args = parser.parse_args()
    if args.models < 2 or args.clients < 1 or args.seconds <= 0:
        parser.error("it needs at least two models, one client and a positive time")
    seed = secrets.randbelow(10**6) if args.seed is None else args.seed
    plan = Plan(args.engine, args.seconds, args.clients, args.models, seed, store=args.store)
    plan = replace(plan, budget_mib=args.budget, pace=args.pace)
    directory = Path(tempfile.mkdtemp(prefix="berth-soak-"))
    _say(f"seed {seed}")
    if args.faults:
        storm = run_storm(plan, directory, _say)
        broken, results = broken_in_storm(storm), storm_table(storm)
    else:
        result = run(plan, directory, _say)
        broken, results = broken_promises(result), table(result)
    _say(results)
    if broken:
        (directory / "broken.txt").write_text("\n".join(broken))
        _say(f"{shown(broken)}\nlogs: {directory}")
        return 1
    shutil.rmtree(directory)
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
