"""Checks the engine on a GPU and measures its paths, with PyTorch's operators, our kernels, and CUDA graphs.

    python -m benchmarks.gpu [--out FILE] [--seconds N] [--rehearse] [PART …]

Prints Markdown as it goes; its last table says which path is the fastest. Needs torch, triton, numpy and
safetensors. Each part runs in a process of its own, so that one that fails or hangs doesn't end the rest.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu import REHEARSAL
from benchmarks.gpu.table import as_table, numbers_of
from engine.models.triton_kernels.switches import GRAPHS, KERNELS

PATHS = {
    "torch": {KERNELS: "0", GRAPHS: "0"},
    "kernels": {KERNELS: "1", GRAPHS: "0"},
    "graphs": {KERNELS: "1", GRAPHS: "1"},
}
_LEAST_S = 5.0  # a part with less time left is not started
_REHEARSED = {REHEARSAL: "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Part:
    """A module of this package, run on one of PATHS."""

    module: str
    limit_s: float
    path: str = "graphs"

    @property
    def name(self) -> str:
        return f"{self.module}, {self.path}"


PARTS = (
    Part("machine", 40),
    Part("tokens", 60, "torch"),
    Part("tokens", 60, "kernels"),
    Part("tokens", 60, "graphs"),
    Part("speed", 60, "torch"),
    Part("speed", 60, "kernels"),
    Part("speed", 60, "graphs"),
    Part("kernels", 150),
    Part("sleep", 60),
    Part("profile", 45, "kernels"),
    Part("profile", 45, "torch"),
    Part("tiles", 60),
)
"""The most important first, as time may run out."""


@dataclass
class Report:
    """What was printed, which is also written to a file."""

    out: Path | None
    text: str = field(default="", init=False)

    def add(self, text: str) -> None:
        print(text, end="", flush=True)
        self.text += text
        if self.out is not None:
            self.out.write_text(self.text)


def main() -> int:
    modules = list(dict.fromkeys(part.module for part in PARTS))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(modules)}; all by default")
    parser.add_argument("--out", type=Path, help="write the Markdown to this file too")
    parser.add_argument("--seconds", type=float, default=460, help="for all parts together")
    parser.add_argument("--rehearse", action="store_true", help="try the check itself, tiny, on a CPU")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.parts) - set(modules)):
        parser.error(f"no such part: {', '.join(unknown)}")
    if arguments.here:
        for module in arguments.parts:
            importlib.import_module(f"benchmarks.gpu.{module}").main()
        return 0
    wanted = [part for part in PARTS if part.module in (arguments.parts or modules)]
    environment = _REHEARSED if arguments.rehearse else {}
    return _run_all(wanted, Report(arguments.out), arguments.seconds, environment)


def _run_all(parts: list[Part], report: Report, seconds: float, environment: Mapping[str, str]) -> int:
    if environment:
        report.add("**A rehearsal on a CPU: its numbers mean nothing.**\n\n")
    deadline = time.monotonic() + seconds
    failed = []
    speeds: dict[str, dict[str, float]] = {}
    for part in parts:
        report.add(f"## {part.name}\n\n")
        limit_s = min(part.limit_s, deadline - time.monotonic())
        if limit_s < _LEAST_S:
            report.add("No time left.\n\n")
            failed.append(part.name)
            continue
        output, has_failed = _run(part, limit_s, report, environment)
        failed += [part.name] * has_failed
        if part.module == "speed":
            speeds[part.path] = numbers_of(output)
    if speeds:
        report.add(_comparison(speeds))
    report.add(f"Failed: {'; '.join(failed) or 'none'}.\n")
    return 1 if failed else 0


def _run(part: Part, limit_s: float, report: Report, environment: Mapping[str, str]) -> tuple[str, bool]:
    """A part's output, and whether it failed."""
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    started = time.monotonic()
    lines = []
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", "--here", part.module],
        env={**inherited, "PYTHONUNBUFFERED": "1", **PATHS[part.path], **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a compiler that it started ends with it
    ) as process:
        timer = threading.Timer(limit_s, _kill, (process.pid,))
        timer.start()
        for line in process.stdout or ():
            report.add(line)
            lines.append(line)
        code = process.wait()
        timer.cancel()
    report.add(f"\n_{_ending(code)} after {time.monotonic() - started:.0f} s_\n\n")
    return "".join(lines), code != 0


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(group, signal.SIGKILL)


def _ending(code: int) -> str:
    return {0: "Done", -signal.SIGKILL: "**Stopped**"}.get(code, f"**Failed with exit code {code}**")


def _comparison(speeds: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds of each step on each path."""
    steps = dict.fromkeys(step for numbers in speeds.values() for step in numbers)
    rows = [(step, *(numbers.get(step, "–") for numbers in speeds.values())) for step in steps]
    return f"## ms per step\n\n{as_table(('step', *speeds), rows)}\n"


if __name__ == "__main__":
    sys.exit(main())
