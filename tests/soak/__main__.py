"""`python -m tests.soak`: run it, print what was seen, exit with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.soak.report import broken_promises, shown, table
from tests.soak.scenario import Engine, Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="of traffic (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="at once (default: %(default)s)")
    parser.add_argument(
        "--models", type=int, default=3, help="of which all but one fit (default: %(default)s)"
    )
    parser.add_argument("--engine", type=Engine, choices=list(Engine), default=Engine.REAL)
    parser.add_argument("--seed", type=int, default=0, help="of what is asked for (default: %(default)s)")
    parser.add_argument("--faults", action="store_true", help="kill and freeze engines, send noise, leave")
    args = parser.parse_args()
    if args.models < 2 or args.clients < 1 or args.seconds <= 0:
        parser.error("it takes two models, a client and some time")
    plan = Plan(args.engine, args.seconds, args.clients, args.models, args.seed, with_faults=args.faults)
    folder = Path(tempfile.mkdtemp(prefix="berth-soak-"))
    result = run(plan, folder, _say)
    broken = broken_promises(result)
    _say(table(result))
    if broken:
        _say(f"{shown(broken)}\nlogs: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
