"""`python -m tests.faults`: run all cases and print the results; exit 1 if anything was lost or leaked."""

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
from tests.faults.environment import FaultEnvironment, Skipped
from tests.faults.journal import Journal, Outcome
from tests.faults.scenario import Scenario

SCENARIOS: tuple[Scenario, ...] = (
    engines_starting.SCENARIO,
    engines_dying.SCENARIO,
    wire.SCENARIO,
    smuggling.SCENARIO,
    clients.SCENARIO,
    disks.SCENARIO,
    scarcity.SCENARIO,
    adoption.SCENARIO,
    streams.SCENARIO,
    redis_away.SCENARIO,
    kills.SCENARIO,
)
_MAX_SHOWN = 1500


@dataclass(slots=True)
class Result:
    """Of one case. No `problems` = survived."""

    scenario: str
    name: str
    seconds: float = 0.0
    num_sent: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: str = ""


class Runner:
    """Runs scenarios one after the other and keeps their results."""

    def __init__(self, directory: Path, seed: int, selected: Sequence[str]) -> None:
        self.journal = Journal()
        self.results: list[Result] = []
        self._directory = directory
        self._seed = seed
        self._selected = selected

    def run(self, scenario: Scenario) -> None:
        cases = [case for case in scenario.cases if self._is_selected(scenario, case.__name__)]
        if cases:
            with self._recording(scenario.name, "nothing is left when Berth has ended"):
                self._run_shared(scenario, cases)
        for case in scenario.isolated:
            if self._is_selected(scenario, case.__name__):
                with self._recording(scenario.name, case.__name__):
                    case(self._directory / case.__name__, self.journal, self._seed)

    def _run_shared(self, scenario: Scenario, cases: Sequence[Callable[[FaultEnvironment], None]]) -> None:
        with FaultEnvironment(
            self._directory / scenario.name, self.journal, None, **scenario.settings
        ) as env:
            for case in cases:
                with self._recording(scenario.name, case.__name__) as result:
                    case(env)
                    result.problems += env.settle()

    def _is_selected(self, scenario: Scenario, name: str) -> bool:
        return not self._selected or any(
            one in f"{scenario.name}: {name}".replace(" ", "_") for one in self._selected
        )

    @contextmanager
    def _recording(self, scenario: str, name: str) -> Iterator[Result]:
        result = Result(scenario, name.replace("_", " "))
        began, sent = time.monotonic(), self.journal.num_sent
        is_inner = " " not in name
        try:
            yield result
        except Skipped as reason:
            result.skipped = str(reason)
        except Exception as error:  # after any error the next case is run
            where = traceback.extract_tb(error.__traceback__)
            ours = [
                f"{Path(frame.filename).name}:{frame.lineno}" for frame in where if "faults" in frame.filename
            ]
            text = str(error)[:_MAX_SHOWN] or repr(error)
            result.problems.append(f"{type(error).__name__} at {' '.join(ours[-3:])}: {text}")
        result.problems += [f"lost: {loss[:_MAX_SHOWN]}" for loss in self.journal.pop_losses()[:5]]
        result.seconds = time.monotonic() - began
        result.num_sent = self.journal.num_sent - sent if is_inner else 0
        self.results.append(result)
        say(_line(result))


def _line(result: Result) -> str:
    outcome = "skipped " if result.skipped else "FAILED  " if result.problems else "survived"
    line = f"{outcome} {result.seconds:6.1f} s {result.num_sent:6} requests  {result.scenario}: {result.name}"
    if result.skipped:
        line += f" ({result.skipped})"
    return "\n".join([line, *(f"    {problem}" for problem in result.problems)])


def table(results: Sequence[Result], journal: Journal, seconds: float) -> str:
    """Lines of name and value."""
    problems = [problem for result in results for problem in result.problems]
    rows = [
        (
            "faults survived",
            f"{sum(not result.problems and not result.skipped for result in results)} of {len(results)}",
        ),
        ("skipped", f"{sum(bool(result.skipped) for result in results)}"),
        ("requests sent", f"{journal.num_sent}"),
        *((f"  {outcome}", f"{journal.outcomes[outcome]}") for outcome in Outcome),
        ("leaked processes", f"{sum('processes' in problem and 'left' in problem for problem in problems)}"),
        ("leaked descriptors", f"{sum('descriptors leaked' in problem for problem in problems)}"),
        *(("measured", note) for note in journal.notes),
        ("time", f"{seconds:.0f} s"),
    ]
    return "\n".join(f"{name:<20} {value}" for name, value in rows)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("only", nargs="*", help="parts of the names of scenarios or cases (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="list the cases without running them")
    args = parser.parse_args()
    if args.list:
        say("\n".join(f"{scenario.name}: {one.__name__}" for scenario in SCENARIOS for one in _all(scenario)))
        return 0
    directory = Path(tempfile.mkdtemp(prefix="berth-faults-"))
    runner = Runner(directory, args.seed, [one.replace(" ", "_") for one in args.only])
    began = time.monotonic()
    for scenario in SCENARIOS:
        runner.run(scenario)
    say(table(runner.results, runner.journal, time.monotonic() - began))
    if not runner.results or any(result.problems for result in runner.results):
        say(f"logs: {directory}")
        return 1
    shutil.rmtree(directory)
    return 0


def _all(scenario: Scenario) -> Sequence[Callable[..., None]]:
    return (*scenario.cases, *scenario.isolated)


if __name__ == "__main__":
    sys.exit(main())
