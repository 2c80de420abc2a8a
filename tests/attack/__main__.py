"""`python -m tests.attack`: run all attacks on a local Berth; exits with 1 if one succeeds."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.attack.report import line, summary, table
from tests.attack.rows import GROUPS
from tests.attack.runner import AttackRunner
from tests.berth_process import ROOT

_MOST_S = 900.0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("only", nargs="*", help="substrings of the names of attacks or groups (default: all)")
    parser.add_argument("--list", action="store_true", help="list the attacks without running them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    parser.add_argument(
        "--berth", type=Path, default=ROOT, metavar="PATH", help="the checkout of Berth to attack"
    )
    parser.add_argument("--port", type=int, default=0, help="the first of 100 ports to use (default: any)")
    parser.add_argument(
        "--attempts", type=int, default=3, help="attempts per attack, of which the calmest counts"
    )
    parser.add_argument(
        "--seconds", type=float, default=_MOST_S, help="time limit for all attacks (default: %(default)s)"
    )
    return parser.parse_args()


def main() -> int:
    args = _arguments()
    if args.list:
        say("\n".join(f"{group.name}: {one.name} ({one.who})" for group in GROUPS for one in group.attacks))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="berth-attack-"))
    began = time.monotonic()
    runner = AttackRunner(
        folder,
        root=args.berth.resolve(),
        first_port=args.port,
        num_attempts=args.attempts,
        deadline=began + args.seconds,
        on_result=lambda result: say(line(result)),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for group in GROUPS:
            runner.run(group, [one.replace("_", " ") for one in args.only])
    finally:
        runner.close()
        results = runner.results
        if args.json:
            args.json.write_text(json.dumps([one.as_json() for one in results], indent=1))
    say(f"\n{table(results)}\n\n{summary(results, time.monotonic() - began)}")
    if not results or any(one.verdict == "FAILED" for one in results):
        say(f"logs: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
