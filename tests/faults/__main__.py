"""`python -m tests.faults`: run all cases, print what was survived; 1 if anything was lost or left."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import (
    adoption,
    clients,
    disks,
    engines_dying,
    engines_starting,
    kills,
    redis_away,
    scarcity,
    smuggling,
    streams,
    wire,
)
from tests.faults.environment import Harbour, Skipped
from tests.faults.journal import Fate, Ledger
from tests.faults.scenario import Scene

SCENES: tuple[Scene, ...] = (
    engines_starting.SCENE,
    engines_dying.SCENE,
    wire.SCENE,
    smuggling.SCENE,
    clients.SCENE,
    disks.SCENE,
    scarcity.SCENE,
    adoption.SCENE,
    streams.SCENE,
    redis_away.SCENE,
    kills.SCENE,
)
_MAX_SHOWN = 1500


@dataclass(slots=True)
class Result:
    """Of one case. `problems` empty = survived."""

    scene: str
    name: str
    seconds: float = 0.0
    num_sent: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: str = ""


class Runner:
    """Runs scenes one after the other and remembers."""

    def __init__(self, folder: Path, seed: int, wanted: Sequence[str]) -> None:
        self.ledger = Ledger()
        self.results: list[Result] = []
        self._folder = folder
        self._seed = seed
        self._wanted = wanted

    def run(self, scene: Scene) -> None:
        cases = [case for case in scene.cases if self._is_wanted(scene, case.__name__)]
        if cases:
            with self._noting(scene.name, "all as before, when Berth has ended"):
                self._run_together(scene, cases)
        for alone in scene.alone:
            if self._is_wanted(scene, alone.__name__):
                with self._noting(scene.name, alone.__name__):
                    alone(self._folder / alone.__name__, self.ledger, self._seed)

    def _run_together(self, scene: Scene, cases: Sequence[Callable[[Harbour], None]]) -> None:
        with Harbour(self._folder / scene.name, self.ledger, **scene.settings) as harbour:
            for case in cases:
                with self._noting(scene.name, case.__name__) as result:
                    case(harbour)
                    result.problems += harbour.settle()

    def _is_wanted(self, scene: Scene, name: str) -> bool:
        return not self._wanted or any(
            one in f"{scene.name}: {name}".replace(" ", "_") for one in self._wanted
        )

    @contextmanager
    def _noting(self, scene: str, name: str) -> Iterator[Result]:
        result = Result(scene, name.replace("_", " "))
        began, sent = time.monotonic(), self.ledger.num_sent
        is_inner = name.islower() and "," not in name
        try:
            yield result
        except Skipped as reason:
            result.skipped = str(reason)
        except Exception as error:  # the root of a case: whatever it is, the next one is run
            where = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(one.filename).name}:{one.lineno}" for one in where if "faults" in one.filename]
            text = str(error)[:_MAX_SHOWN] or repr(error)
            result.problems.append(f"{type(error).__name__} at {' '.join(ours[-3:])}: {text}")
        result.problems += [f"lost: {loss[:_MAX_SHOWN]}" for loss in self.ledger.take_losses()[:5]]
        result.seconds = time.monotonic() - began
        result.num_sent = self.ledger.num_sent - sent if is_inner else 0
        self.results.append(result)
        say(_line(result))


def _line(result: Result) -> str:
    outcome = "skipped " if result.skipped else "FAILED  " if result.problems else "survived"
    line = f"{outcome} {result.seconds:6.1f} s {result.num_sent:6} requests  {result.scene}: {result.name}"
    if result.skipped:
        line += f" ({result.skipped})"
    return "\n".join([line, *(f"    {problem}" for problem in result.problems)])


def table(results: Sequence[Result], ledger: Ledger, seconds: float) -> str:
    """Some lines of name and value."""
    told = [problem for one in results for problem in one.problems]
    rows = [
        (
            "faults survived",
            f"{sum(not one.problems and not one.skipped for one in results)} of {len(results)}",
        ),
        ("skipped", f"{sum(bool(one.skipped) for one in results)}"),
        ("requests sent", f"{ledger.num_sent}"),
        *((f"  {fate}", f"{ledger.fates[fate]}") for fate in Fate),
        ("leaked processes", f"{sum('processes' in problem and 'left' in problem for problem in told)}"),
        ("leaked descriptors", f"{sum('descriptors leaked' in problem for problem in told)}"),
        *(("measured", note) for note in ledger.notes),
        ("time", f"{seconds:.0f} s"),
    ]
    return "\n".join(f"{name:<20} {value}" for name, value in rows)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("only", nargs="*", help="parts of the names of scenes or cases (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="name the cases and run none")
    args = parser.parse_args()
    if args.list:
        say("\n".join(f"{scene.name}: {one.__name__}" for scene in SCENES for one in _all(scene)))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="berth-faults-"))
    runner = Runner(folder, args.seed, [one.replace(" ", "_") for one in args.only])
    began = time.monotonic()
    for scene in SCENES:
        runner.run(scene)
    say(table(runner.results, runner.ledger, time.monotonic() - began))
    if not runner.results or any(one.problems for one in runner.results):
        say(f"logs: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _all(scene: Scene) -> Sequence[Callable[..., None]]:
    return (*scene.cases, *scene.alone)


if __name__ == "__main__":
    sys.exit(main())
