"""`python -m tests.attack`: attack a Berth of one's own, in all ways; 1 if anything came of it."""

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
from tests.attack.rows import FIELDS
from tests.attack.runner import Runner
from tests.berth_process import ROOT

_MOST_S = 900.0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("only", nargs="*", help="parts of the names of attacks or fields (default: all)")
    parser.add_argument("--list", action="store_true", help="name the attacks and run none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument(
        "--berth", type=Path, default=ROOT, metavar="PATH", help="another checkout of Berth, to be attacked"
    )
    parser.add_argument("--port", type=int, default=0, help="the first of 100 to listen on (default: any)")
    parser.add_argument("--attempts", type=int, default=3, help="of which the calmest counts")
    parser.add_argument("--seconds", type=float, default=_MOST_S, help="for all (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    args = _arguments()
    if args.list:
        say("\n".join(f"{field.name}: {one.name} ({one.who})" for field in FIELDS for one in field.attacks))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="berth-attack-"))
    began = time.monotonic()
    runner = Runner(
        folder,
        root=args.berth.resolve(),
        first_port=args.port,
        num_attempts=args.attempts,
        deadline=began + args.seconds,
        tell=lambda result: say(line(result)),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for field in FIELDS:
            runner.run(field, [one.replace("_", " ") for one in args.only])
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
